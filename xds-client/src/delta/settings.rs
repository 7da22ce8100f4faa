//! What the machine is to do.

use std::time::Duration;

use super::Mode;
use crate::proto;
use crate::resource::TypeUrl;

/// What to subscribe to, and for how long to wait.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node: proto::Node,
    /// In the order of the first requests. Repeating a type changes nothing.
    pub types: Vec<(TypeUrl, Mode)>,
    /// How long a demand waits for its answer.
    pub demand_timeout: Duration,
    /// Most keys of one type that are waited for at a time.
    pub outstanding_demands: usize,
    /// How long a new stream may say nothing while a type was never answered.
    pub first_answer: Duration,
    /// The same, once the stream has said something.
    pub next_answer: Duration,
}

impl Settings {
    pub fn new(node: proto::Node, types: Vec<(TypeUrl, Mode)>) -> Self {
        Self {
            node,
            types,
            demand_timeout: Duration::from_secs(5),
            outstanding_demands: 4096,
            first_answer: Duration::from_secs(60),
            next_answer: Duration::from_secs(300),
        }
    }
}
