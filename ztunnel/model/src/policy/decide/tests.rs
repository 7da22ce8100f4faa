use super::super::{Clause, Rule, Scope};
use super::*;

fn identity(text: &str) -> Identity {
    text.parse().expect("the test's identity is valid")
}

fn decides(policies: &[Policy], connection: &Connection<'_>) -> Decision {
    decide(policies.iter(), connection)
}

fn key(name: &str) -> PolicyKey {
    PolicyKey { namespace: "ns".into(), name: name.into() }
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy { key: key(name), scope: Scope::Namespace, action, dry_run: false, rules }
}

fn rule(matches: Vec<Match>) -> Rule {
    Rule { clauses: vec![Clause { matches }] }
}

/// Whether a single match applies, seen through a DENY policy that holds nothing else.
fn matched(one: Match, connection: &Connection<'_>) -> bool {
    !decides(&[policy("p", Action::Deny, vec![rule(vec![one])])], connection).is_allowed()
}

fn exact(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text.into())]
}

fn account(namespace: &str, name: &str) -> Vec<ServiceAccountMatch> {
    vec![ServiceAccountMatch { namespace: namespace.into(), service_account: name.into() }]
}

/// Puts a value into a field or its negation, one that fits or one that does not.
type Set = fn(&mut Match, bool, bool);

/// Each field with a value that fits the connection below and one that does not.
fn fields() -> Vec<(&'static str, Set)> {
    macro_rules! field {
        ($positive:ident, $negative:ident, $fits:expr, $other:expr) => {
            (stringify!($positive), |one: &mut Match, negative: bool, fits: bool| {
                let values = if fits { $fits } else { $other };
                if negative { one.$negative = values } else { one.$positive = values }
            })
        };
    }
    vec![
        field!(namespaces, not_namespaces, exact("web"), exact("Web")),
        field!(service_accounts, not_service_accounts, account("web", "front"), account("web", "back")),
        field!(principals, not_principals, exact("td/ns/web/sa/front"), exact("spiffe://td/ns/web/sa/front")),
        field!(
            source_ips,
            not_source_ips,
            vec!["10.0.0.0/24".parse().expect("a prefix")],
            vec!["10.0.1.0/24".parse().expect("a prefix")]
        ),
        field!(
            destination_ips,
            not_destination_ips,
            vec!["10.1.0.2/32".parse().expect("a prefix")],
            vec!["fd00::/8".parse().expect("a prefix")]
        ),
        field!(destination_ports, not_destination_ports, vec![1, 8080], vec![80]),
    ]
}

fn connection(identity: Option<&Identity>) -> Connection<'_> {
    Connection {
        identity,
        source: "[::ffff:10.0.0.9]:1234".parse().expect("an address"),
        destination: "10.1.0.2:8080".parse().expect("an address"),
    }
}

#[test]
fn every_field_and_its_negation() {
    let who = identity("spiffe://td/ns/web/sa/front");
    let connection = connection(Some(&who));
    for (name, set) in fields() {
        for (negative, fits) in [(false, true), (false, false), (true, true), (true, false)] {
            let mut one = Match::default();
            set(&mut one, negative, fits);
            assert_eq!(matched(one, &connection), negative != fits, "{name} negative={negative} fits={fits}");
        }
    }
}

#[test]
fn fields_of_a_match_are_joined_by_and() {
    let who = identity("spiffe://td/ns/web/sa/front");
    let connection = connection(Some(&who));
    for (name, wrong) in fields() {
        let mut one = Match::default();
        for (_, set) in fields() {
            set(&mut one, false, true);
        }
        assert!(matched(one.clone(), &connection));
        wrong(&mut one, false, false);
        assert!(!matched(one, &connection), "{name} alone must be enough to fail the match");
    }
}

#[test]
fn kinds_of_string_match() {
    let who = identity("spiffe://td/ns/web/sa/front");
    let principal = |one| Match { principals: vec![one], ..Match::default() };
    let cases = [
        (StringMatch::Prefix("td/ns/web".into()), true),
        (StringMatch::Prefix("td/ns/webs".into()), false),
        (StringMatch::Suffix("/sa/front".into()), true),
        (StringMatch::Suffix("/sa/fron".into()), false),
        (StringMatch::Suffix("x/td/ns/web/sa/front".into()), false),
        (StringMatch::Exact("td/ns/web/sa/fronT".into()), false),
        (StringMatch::Presence, true),
    ];
    for (one, expected) in cases {
        assert_eq!(matched(principal(one.clone()), &connection(Some(&who))), expected, "{one:?}");
        assert!(!matched(principal(one), &connection(None)), "no identity never matches a principal");
    }
}

#[test]
fn without_an_identity() {
    let plain = connection(None);
    let presence = || vec![StringMatch::Presence];
    let anything = || vec![StringMatch::Prefix(String::new())];
    assert!(matched(Match { not_principals: presence(), ..Match::default() }, &plain), "this is STRICT");
    assert!(matched(Match { not_principals: anything(), ..Match::default() }, &plain));
    assert!(!matched(Match { principals: anything(), ..Match::default() }, &plain));
    assert!(matched(Match { namespaces: anything(), ..Match::default() }, &plain));
    assert!(!matched(Match { namespaces: presence(), ..Match::default() }, &plain));
    assert!(matched(Match { not_namespaces: presence(), ..Match::default() }, &plain));
    assert!(!matched(Match { service_accounts: account("", ""), ..Match::default() }, &plain));
    assert!(matched(Match { not_service_accounts: account("web", "front"), ..Match::default() }, &plain));
}

#[test]
fn nesting_and_emptiness() {
    let who = identity("spiffe://td/ns/web/sa/front");
    let connection = connection(Some(&who));
    let fits = || Match { destination_ports: vec![8080], ..Match::default() };
    let misses = || Match { destination_ports: vec![80], ..Match::default() };
    let denies = |rules| !decides(&[policy("p", Action::Deny, rules)], &connection).is_allowed();
    assert!(!denies(vec![]), "a policy without rules matches nothing");
    assert!(denies(vec![Rule::default()]), "a rule without clauses matches everything");
    assert!(denies(vec![rule(vec![])]), "a clause without matches matches everything");
    assert!(!denies(vec![rule(vec![Match::default()])]), "an empty match never matches");
    assert!(denies(vec![rule(vec![misses(), fits()])]), "matches are joined by OR");
    assert!(denies(vec![rule(vec![misses()]), rule(vec![fits()])]), "rules are joined by OR");
    let clauses =
        |one, other| Rule { clauses: vec![Clause { matches: vec![one] }, Clause { matches: vec![other] }] };
    assert!(!denies(vec![clauses(fits(), misses())]), "clauses are joined by AND");
    assert!(denies(vec![clauses(fits(), fits())]));
}

#[test]
fn deny_comes_before_allow_and_names_itself() {
    let connection = connection(None);
    let all = || vec![Rule::default()];
    let deny = policy("deny", Action::Deny, all());
    let allow = policy("allow", Action::Allow, all());
    let other = policy("other", Action::Allow, vec![]);
    assert_eq!(decides(&[], &connection), Decision::AllowedByDefault);
    assert_eq!(decides(&[allow.clone(), deny.clone()], &connection), Decision::DeniedBy(key("deny")));
    assert_eq!(decides(&[other.clone(), allow], &connection), Decision::AllowedBy(key("allow")));
    assert_eq!(decides(&[other], &connection), Decision::NoAllowMatched);
    assert_eq!(decides(&[deny], &connection).to_string(), "explicitly denied by: ns/deny");
    assert_eq!(Decision::NoAllowMatched.to_string(), "allow policies exist, but none allowed");
}

#[test]
fn dry_run_is_told_and_changes_nothing() {
    let connection = connection(None);
    let dry = |name: &str, action, rules| Policy { dry_run: true, ..policy(name, action, rules) };
    let all = || vec![Rule::default()];
    let told = |policies: &[Policy]| dry_run(policies.iter(), &connection);
    let deny = dry("deny", Action::Deny, all());
    assert_eq!(decides(std::slice::from_ref(&deny), &connection), Decision::AllowedByDefault);
    assert_eq!(told(&[deny]), [DryRun::DenyMatch(key("deny"))]);
    assert_eq!(told(&[dry("allow", Action::Allow, all())]), [DryRun::AllowMatch(key("allow"))]);
    let missing = dry("allow", Action::Allow, vec![]);
    assert_eq!(told(std::slice::from_ref(&missing)), [DryRun::NoAllowMatched]);
    assert_eq!(decides(std::slice::from_ref(&missing), &connection), Decision::AllowedByDefault);
    assert_eq!(told(&[missing, policy("enforced", Action::Allow, all())]), []);
}
