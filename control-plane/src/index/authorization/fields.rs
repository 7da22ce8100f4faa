//! The fields of one source, operation or condition, read on the safe side.

use ipnet::IpNet;
use ztunnel_model::policy::{Action, Match, ServiceAccountMatch, StringMatch};

use crate::index::status::Reason;
use crate::object;

/// What one source, operation or condition comes to.
#[derive(Debug)]
pub(super) enum Outcome {
    Match(Box<Match>),
    Anyone,
    Nobody,
    /// Holds an attribute for whose sake the whole rule is left out.
    NoRule,
}

pub(super) struct Fields<'a> {
    action: Action,
    at: &'a str,
    reasons: &'a mut Vec<Reason>,
    nobody: bool,
    no_rule: bool,
}

impl<'a> Fields<'a> {
    pub(super) fn new(action: Action, at: &'a str, reasons: &'a mut Vec<Reason>) -> Self {
        Self { action, at, reasons, nobody: false, no_rule: false }
    }

    /// A field of which one value must match.
    pub(super) fn any<T>(
        &mut self,
        name: &str,
        values: &[String],
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let (good, bad) = self.read(name, values, read);
        match self.action {
            Action::Allow => self.nobody |= bad && good.is_empty(),
            // The unreadable value may be the one that matches.
            Action::Deny if bad => return Vec::new(),
            Action::Deny => {}
        }
        good
    }

    /// A field of which no value may match.
    pub(super) fn none<T>(
        &mut self,
        name: &str,
        values: &[String],
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let (good, bad) = self.read(name, values, read);
        self.nobody |= bad && self.action == Action::Allow;
        good
    }

    /// A field that says nothing to a proxy of layer 4.
    pub(super) fn unknown(&mut self, name: &str, values: &[String]) {
        if values.is_empty() {
            return;
        }
        let consequence = match self.action {
            Action::Allow => "the rule is left out and allows nobody",
            Action::Deny => "the rule is enforced without it and denies more",
        };
        self.no_rule |= self.action == Action::Allow;
        let what = if name == "key" { format!("{:?}", values[0]) } else { name.to_owned() };
        let text = format!(
            "{what} cannot be seen at layer 4; {consequence}; remove it, or use a waypoint and targetRefs"
        );
        self.say(name, text);
    }

    pub(super) fn finish(self, matched: Match) -> Outcome {
        if self.no_rule {
            Outcome::NoRule
        } else if self.nobody {
            Outcome::Nobody
        } else if matched != Match::default() {
            Outcome::Match(Box::new(matched))
        } else if self.action == Action::Deny {
            Outcome::Anyone
        } else {
            Outcome::Nobody
        }
    }

    fn read<T>(
        &mut self,
        name: &str,
        values: &[String],
        read: impl Fn(&str) -> Result<T, String>,
    ) -> (Vec<T>, bool) {
        let mut good = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate() {
            match read(value) {
                Ok(value) => good.push(value),
                Err(text) => self.say(&format!("{name}[{index}]"), text),
            }
        }
        let bad = good.len() < values.len();
        (good, bad)
    }

    fn say(&mut self, field: &str, text: String) {
        self.reasons.push(Reason { field: format!("{}.{field}", self.at), text });
    }
}

pub(super) fn string(value: &str) -> Result<StringMatch, String> {
    let text = object::text(value)?;
    Ok(match (text, text.strip_prefix('*'), text.strip_suffix('*')) {
        ("*", _, _) => StringMatch::Presence,
        (_, Some(suffix), _) => StringMatch::Suffix(suffix.to_owned()),
        (_, None, Some(prefix)) => StringMatch::Prefix(prefix.to_owned()),
        (text, None, None) => StringMatch::Exact(text.to_owned()),
    })
}

pub(super) fn account(value: &str, own_namespace: &str) -> Result<ServiceAccountMatch, String> {
    let (namespace, account) = object::service_account(value)?;
    Ok(ServiceAccountMatch {
        namespace: namespace.unwrap_or(own_namespace).to_owned(),
        service_account: account.to_owned(),
    })
}

pub(super) fn block(value: &str) -> Result<IpNet, String> {
    object::block(value)
}
