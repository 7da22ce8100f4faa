//! One response and the duty to answer it.

use std::fmt::Write;
use std::time::Instant;

use super::Machine;
use crate::resource::{Rejection, Update};

/// Said of a response that was dropped.
pub(super) const UNANSWERED: &str = "the proxy did not process the response";

/// Longest text of one rejection, and of a whole refusal. What is left out is counted.
const LONGEST_REASON: usize = 512;
const LONGEST_REFUSAL: usize = 16 * 1024;

/// A response that has to be answered. It borrows the machine, so nothing else happens before; dropping it refuses the
/// whole response.
///
/// ```
/// # use xds_client::{delta::*, proto::DeltaDiscoveryResponse};
/// # fn f(machine: &mut Machine, response: DeltaDiscoveryResponse, now: std::time::Instant) {
/// let mut response = machine.received(response, now).expect("a known type");
/// let rejected = response.update().decode(|_name, body| std::str::from_utf8(body).map(str::len)).1;
/// response.answer(rejected);
/// machine.poll_request();
/// # }
/// ```
///
/// It cannot be answered twice:
///
/// ```compile_fail,E0382
/// # use xds_client::{delta::*, proto::DeltaDiscoveryResponse};
/// # fn f(machine: &mut Machine, response: DeltaDiscoveryResponse, now: std::time::Instant) {
/// let mut response = machine.received(response, now).expect("a known type");
/// response.ack();
/// response.ack();
/// # }
/// ```
///
/// nor cloned:
///
/// ```compile_fail,E0599
/// # use xds_client::{delta::*, proto::DeltaDiscoveryResponse};
/// # fn f(machine: &mut Machine, response: DeltaDiscoveryResponse, now: std::time::Instant) {
/// let mut response = machine.received(response, now).expect("a known type");
/// response.clone().ack();
/// response.ack();
/// # }
/// ```
///
/// and no other event is taken before its answer:
///
/// ```compile_fail,E0499
/// # use xds_client::{delta::*, proto::DeltaDiscoveryResponse};
/// # fn f(machine: &mut Machine, response: DeltaDiscoveryResponse, now: std::time::Instant) {
/// let mut response = machine.received(response, now).expect("a known type");
/// machine.poll_request();
/// response.ack();
/// # }
/// ```
#[must_use = "a response that is not answered is refused"]
#[derive(Debug)]
pub struct Response<'m> {
    machine: &'m mut Machine,
    index: usize,
    /// `None` once answered.
    update: Option<Update>,
    /// What the machine itself refused.
    refused: Vec<Rejection>,
    now: Instant,
}

/// At least one rejection.
#[derive(Debug)]
pub struct Rejections(Vec<Rejection>);

impl<'m> Response<'m> {
    pub(super) fn new(
        machine: &'m mut Machine,
        index: usize,
        update: Update,
        refused: Vec<Rejection>,
        now: Instant,
    ) -> Self {
        Self { machine, index, update: Some(update), refused, now }
    }

    /// The changes to apply, without the resources that cannot be used at all: those are rejected whatever the answer.
    pub fn update(&mut self) -> &mut Update {
        self.update.as_mut().expect("taken only by what consumes the response")
    }

    /// Everything was applied.
    pub fn ack(self) {
        self.settle(Vec::new());
    }

    /// Everything was applied but these.
    pub fn nack(self, rejections: Rejections) {
        self.settle(rejections.0);
    }

    /// `ack` if nothing was rejected, else `nack`.
    pub fn answer(self, rejected: Vec<Rejection>) {
        self.settle(rejected);
    }

    fn settle(mut self, rejected: Vec<Rejection>) {
        if let Some(update) = self.update.take() {
            self.refused.extend(rejected);
            self.machine.settle(self.index, update, &self.refused, self.now);
        }
    }
}

impl Drop for Response<'_> {
    fn drop(&mut self) {
        if let Some(update) = self.update.take() {
            self.machine.refuse(self.index, update);
        }
    }
}

impl Rejections {
    /// `None` if there is nothing to reject.
    pub fn new(rejections: Vec<Rejection>) -> Option<Self> {
        (!rejections.is_empty()).then_some(Self(rejections))
    }
}

/// The text of a refusal: `name: reason` for each, joined by "; ". A bad server could make it as long as its response.
pub(super) fn refusal(rejections: &[Rejection]) -> Option<String> {
    let mut text = String::new();
    for (index, rejection) in rejections.iter().enumerate() {
        if text.len() > LONGEST_REFUSAL {
            let _ = write!(text, "; and {} more", rejections.len() - index);
            break;
        }
        let separator = if index == 0 { "" } else { "; " };
        let (name, reason) = (cut(rejection.name.as_str()), cut(&rejection.reason));
        let _ = write!(text, "{separator}{name}: {reason}");
    }
    (!rejections.is_empty()).then_some(text)
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST_REASON)]
}
