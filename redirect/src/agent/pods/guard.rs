//! Keeps captured pods captured: audits, repairs, proofs, and who is to be quarantined.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use super::{Captured, Hold, Part, Pods};
use crate::audit::{Contest, Damage, Pace, Wake, Watch, proof};
use crate::retry::Retry;
use crate::rules::form::{Foreign, Form};
use crate::rules::host::Members;
use crate::rules::{self, Closed, Uncaptured};
use crate::source::{Notice, Pod};

/// How long a strict pod may be without proven capture before it is quarantined.
pub(in crate::agent) const BOUND: Duration = Duration::from_secs(2);
/// Between audits of one pod that many changes ask for.
const SHORTEST: Duration = Duration::from_millis(20);
/// After which an audit that a repair must wait for comes back.
const PAUSE: Duration = Duration::from_millis(50);

/// What is needed to guard any pod.
pub(in crate::agent) struct Guarding {
    wake: Arc<Wake>,
    period: Duration,
    /// Of strict pods, and of permissive ones.
    forms: [Option<Form>; 2],
    tokens: HashMap<u64, String>,
    next_token: u64,
    /// An audit that must not wait for the next look.
    soon: Option<Instant>,
}

impl Guarding {
    pub(in crate::agent) fn new(wake: Arc<Wake>, period: Duration) -> Self {
        Self { wake, period, forms: [None, None], tokens: HashMap::new(), next_token: 1, soon: None }
    }

    /// The expected form of the rules; tried again where it could not be had.
    pub(super) fn form(&mut self, strict: bool) -> Option<&Form> {
        let form = &mut self.forms[usize::from(!strict)];
        if form.is_none() {
            let read = Form::of_this_kernel(Uncaptured::of(strict));
            let failed = |error: &rules::Error| tracing::error!(%error, "rules cannot be audited");
            *form = read.inspect_err(failed).ok();
        }
        form.as_ref()
    }

    fn hurry(&mut self, due: Instant) {
        self.soon = Some(self.soon.map_or(due, |soon| soon.min(due)));
    }

    /// In time for the next audit; spread, so that the pods of a node are not all audited at once.
    fn next(&self) -> Instant {
        Instant::now() + self.period.mul_f64(rand::rng().random_range(0.8..1.0))
    }

    fn listen(&mut self, uid: &str, token: Option<u64>, watch: &Watch) -> u64 {
        let token = token.unwrap_or(self.next_token);
        self.next_token = self.next_token.max(token + 1);
        if let Err(error) = watch.wake_by(&self.wake, token) {
            tracing::error!(pod = uid, %error, "changes of rules are not heard, only looked for");
        }
        self.tokens.insert(token, uid.to_owned());
        token
    }
}

/// Of one pod.
pub(in crate::agent) struct Guard {
    watch: Option<Watch>,
    /// By which the runtime names its sockets; 0 where there are none.
    token: u64,
    /// When the next audit is.
    due: Instant,
    last: Instant,
    contest: Contest,
    pub(super) repairs: u64,
    pub(super) trouble: Option<Trouble>,
}

/// Why it is not sure that a pod is captured.
pub(in crate::agent) struct Trouble {
    pub(super) kind: Kind,
    pub(super) message: String,
    since: Instant,
    retry: Retry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum Kind {
    Unproven,
    Broken,
    Contested,
}

impl Kind {
    fn reason(self) -> &'static str {
        match self {
            Self::Unproven => "CaptureUnproven",
            Self::Broken => "CaptureBroken",
            Self::Contested => "CaptureContested",
        }
    }
}

impl Guard {
    /// Of a pod that has changed; its rules must be others now where it is `differently` strict, which the next audit does.
    pub(super) fn of_another(mut self, differently: bool) -> Self {
        if differently {
            self.watch.iter_mut().for_each(Watch::forget);
            self.due = Instant::now();
        }
        self
    }
}

/// What work inside the pod's namespace came to.
pub(super) struct Inside {
    pub(super) watch: Result<Watch, rules::Error>,
    proof: Result<Vec<IpAddr>, proof::Error>,
}

impl Inside {
    /// In the namespace of the calling thread, where rules are installed.
    pub(super) fn look(hold: &Hold) -> Self {
        Self::answered_by(answer(hold))
    }

    fn answered_by(answer: proof::Answer) -> Self {
        Self { watch: Watch::open(), proof: proof::prove(answer) }
    }
}

/// Who answers what the rules capture.
fn answer(hold: &Hold) -> proof::Answer {
    match hold {
        Hold::Both(_) | Hold::Sockets(_) | Hold::Released(_) => proof::Answer::Listener,
        Hold::Rules(_) => proof::Answer::Namespace,
    }
}

impl Pods {
    /// Takes up guarding a pod that was just captured.
    pub(super) fn guard(&mut self, pod: &Pod, inside: Inside) -> Guard {
        let now = Instant::now();
        let watch =
            inside.watch.inspect_err(|error| tracing::error!(pod = pod.uid, %error, "pod not watched"));
        let watch = watch.ok();
        let token =
            watch.as_ref().map(|watch| self.guarding.listen(&pod.uid, None, watch)).unwrap_or_default();
        let mut guard = Guard {
            watch,
            token,
            due: now,
            last: now,
            contest: Contest::default(),
            repairs: 0,
            trouble: None,
        };
        self.judge(&mut guard, pod, inside.proof);
        guard
    }

    pub(super) fn unguard(&mut self, guard: Option<&Guard>) {
        if let Some(guard) = guard {
            self.guarding.tokens.remove(&guard.token);
        }
    }

    /// Something was told by these sockets.
    pub(in crate::agent) fn woken(&mut self, tokens: Vec<u64>) {
        for token in tokens {
            let held = self.guarding.tokens.get(&token).and_then(|uid| self.captured.get_mut(uid));
            if let Some(guard) = held.and_then(|held| held.guard.as_mut()) {
                guard.watch.iter().for_each(Watch::drain);
                guard.due = guard.due.min(guard.last + SHORTEST);
                self.guarding.hurry(guard.due);
            }
        }
    }

    /// Resolves when an audit is due that must not wait for the next look; never where there is none.
    pub(in crate::agent) fn soon(&self) -> impl Future<Output = ()> + Send + use<> {
        let soon = self.guarding.soon;
        async move {
            match soon {
                Some(soon) => tokio::time::sleep_until(soon).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Audits who is due, and mends what is found.
    pub(in crate::agent) async fn audit(&mut self) {
        let now = Instant::now();
        self.guarding.soon = self.guarding.soon.filter(|soon| *soon > now);
        let due = |held: &Captured| held.guard.as_ref().is_some_and(|guard| guard.due <= now);
        for uid in self.uids(|_, held| due(held)) {
            let Some(mut held) = self.captured.remove(&uid) else { continue };
            if let Some(mut guard) = held.guard.take() {
                self.audit_one(&held, &mut guard).await;
                held.guard = Some(guard);
            }
            self.captured.insert(uid, held);
        }
    }

    async fn audit_one(&mut self, held: &Captured, guard: &mut Guard) {
        let start = Instant::now();
        guard.last = start;
        guard.due = self.guarding.next();
        // Where it is not known what they must be, it can be proven all the same that they work.
        let Some(form) = self.guarding.form(held.pod.strict) else { return self.prove(held, guard).await };
        let unseen = || Damage::Unseen("no socket in its namespace".to_owned());
        let (damage, foreign) = match &mut guard.watch {
            Some(watch) => {
                let finding = watch.audit(form);
                (finding.damage, finding.foreign)
            }
            None => (Some(unseen()), None),
        };
        self.counts.audits += 1;
        self.counts.audit_time += start.elapsed();
        if let Some(foreign) = foreign {
            self.foreign(&held.pod, &foreign);
        }
        match damage {
            Some(damage) => self.repair(held, guard, &damage).await,
            None => self.prove_again(held, guard).await,
        }
    }

    async fn repair(&mut self, held: &Captured, guard: &mut Guard, damage: &Damage) {
        let (pod, start) = (&held.pod, Instant::now());
        let pace = guard.contest.pace(start);
        if pace == Pace::Wait {
            guard.due = start + PAUSE;
            self.guarding.hurry(guard.due);
            return;
        }
        // A namespace that is gone is noticed where listeners are let go of.
        let Ok(netns) = pod.netns.reopen(held.ident) else { return };
        let answer = answer(&held.hold);
        let uncaptured = Uncaptured::of(pod.strict);
        let mend = move || Closed::install(uncaptured).map(|_closed| Inside::answered_by(answer));
        match netns.run(mend).await {
            Ok(Ok(inside)) => {
                guard.repairs += 1;
                *self.counts.repairs.entry(damage.kind()).or_default() += 1;
                let (what, took_us) = (damage.to_string(), start.elapsed().as_micros());
                tracing::warn!(pod = pod.uid, what, took_us, repairs = guard.repairs, "capture repaired");
                self.report(pod, "CaptureRepaired", format!("capture was repaired: {what}"), true);
                if let Ok(watch) = inside.watch {
                    let token = guard.watch.is_some().then_some(guard.token);
                    guard.token = self.guarding.listen(&pod.uid, token, &watch);
                    guard.watch = Some(watch);
                    // What changed while it was repaired, nobody was told of.
                    guard.due = start + SHORTEST;
                    self.guarding.hurry(guard.due);
                }
                self.judge(guard, pod, inside.proof);
                if pace == Pace::RepairContested {
                    let message = format!("somebody undoes the rules over and over; last: {what}");
                    self.trouble(guard, pod, Kind::Contested, message);
                }
            }
            Ok(Err(error)) => self.broken(guard, pod, &error.to_string()),
            Err(error) => self.broken(guard, pod, &error.to_string()),
        }
    }

    fn broken(&mut self, guard: &mut Guard, pod: &Pod, error: &str) {
        guard.due = Instant::now() + PAUSE;
        self.trouble(guard, pod, Kind::Broken, format!("capture was undone and cannot be repaired: {error}"));
    }

    async fn prove_again(&mut self, held: &Captured, guard: &mut Guard) {
        let Some(trouble) = &guard.trouble else { return };
        if trouble.kind == Kind::Contested && guard.contest.is_contested(Instant::now()) {
            return;
        }
        if !trouble.retry.is_due() {
            guard.due = guard.due.min(Instant::now() + trouble.retry.wait());
            return;
        }
        self.prove(held, guard).await;
    }

    async fn prove(&mut self, held: &Captured, guard: &mut Guard) {
        let answer = answer(&held.hold);
        let Ok(netns) = held.pod.netns.reopen(held.ident) else { return };
        if let Ok(proof) = netns.run(move || proof::prove(answer)).await {
            self.judge(guard, &held.pod, proof);
        }
    }

    /// A proof ends all trouble but one: who repairs in vain is proven only between two deeds of the other.
    fn judge(&mut self, guard: &mut Guard, pod: &Pod, proof: Result<Vec<IpAddr>, proof::Error>) {
        match proof {
            Err(error) => self.trouble(guard, pod, Kind::Unproven, error.to_string()),
            Ok(_) if guard.contest.is_contested(Instant::now()) => {}
            Ok(proven) => {
                if guard.trouble.take().is_some() {
                    tracing::info!(pod = pod.uid, ?proven, "capture proven");
                    self.report(pod, "CaptureProven", "capture is proven again".to_owned(), false);
                }
            }
        }
    }

    fn trouble(&mut self, guard: &mut Guard, pod: &Pod, kind: Kind, message: String) {
        let before = guard.trouble.take();
        let retry = Retry::after(before.as_ref().map(|before| before.retry));
        guard.due = guard.due.min(Instant::now() + retry.wait());
        if before.as_ref().is_none_or(|before| before.kind != kind) {
            tracing::error!(pod = pod.uid, strict = pod.strict, reason = message, "{}", kind.reason());
            self.report(pod, kind.reason(), message.clone(), true);
        }
        let since = before.map_or_else(Instant::now, |before| before.since);
        guard.trouble = Some(Trouble { kind, message, since, retry });
    }

    fn foreign(&mut self, pod: &Pod, chains: &[Foreign]) {
        if chains.is_empty() {
            tracing::info!(pod = pod.uid, "foreign rules are gone");
            return;
        }
        let names: Vec<String> = chains.iter().map(ToString::to_string).collect();
        let message = format!(
            "foreign rules in the way of capture, left alone (what they lead past it is dropped): {}",
            names.join("; ")
        );
        self.counts.foreign += 1;
        tracing::warn!(pod = pod.uid, chains = names.join("; "), "foreign rules");
        self.report(pod, "ForeignRules", message, true);
    }

    pub(super) fn report(&mut self, pod: &Pod, reason: &'static str, message: String, warning: bool) {
        self.reports.push(Notice { uid: pod.uid.clone(), warning, reason, message });
    }

    /// What was found since the last time.
    pub(in crate::agent) fn reports(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.reports)
    }

    /// Who is probed and who is quarantined; nobody where the rules are another's.
    pub(in crate::agent) fn members(&self) -> Members {
        let mut members = Members::default();
        if self.part == Part::Sockets {
            return members;
        }
        let mut healthy = Vec::new();
        for Captured { pod, guard, .. } in self.captured.values() {
            let Some(guard) = guard else { continue };
            members.pods.extend(&pod.addresses);
            let late = guard.trouble.as_ref().is_some_and(|trouble| trouble.since.elapsed() >= BOUND);
            match late && pod.strict {
                true => members.quarantined.extend(&pod.addresses),
                false => healthy.extend(&pod.addresses),
            }
        }
        for pending in self.pending.values() {
            // Its rules may be those of an earlier agent, which let no other probe in.
            members.pods.extend(&pending.pod.addresses);
            if pending.open && pending.pod.strict && pending.failed.since.elapsed() >= BOUND {
                members.quarantined.extend(&pending.pod.addresses);
            }
        }
        self.lost.values().for_each(|lost| lost.join(&mut members));
        members.quarantined.retain(|ip| !healthy.contains(ip));
        members
    }
}

#[cfg(test)]
mod tests;
