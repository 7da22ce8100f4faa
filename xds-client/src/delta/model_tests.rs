//! Random histories against a model of a server: whatever happens, in the end both hold the same, every response was
//! answered once, and nothing was sent that the client had said it holds.

mod server;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use server::Server;

/// One resource type is a wildcard, the other on demand.
const TYPES: [&str; 2] = ["type/all", "type/asked"];

#[derive(Clone, Debug)]
enum Step {
    Connect,
    Disconnect,
    /// The client's requests leave.
    Flush,
    /// The server reads the oldest request.
    Read,
    /// The server says what has changed.
    Push(usize),
    /// The oldest response arrives, and the consumer answers or drops it.
    Deliver {
        dropped: bool,
    },
    Put {
        of: usize,
        name: u8,
        alias: u8,
        bad: bool,
    },
    Remove {
        of: usize,
        name: u8,
    },
    Demand(String),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let key = prop_oneof![(0u8..6).prop_map(name), (0u8..6).prop_map(alias), Just("stranger".to_owned())];
    prop_oneof![
        2 => Just(Step::Connect),
        1 => Just(Step::Disconnect),
        4 => Just(Step::Flush),
        6 => Just(Step::Read),
        4 => (0usize..2).prop_map(Step::Push),
        6 => (0u8..12).prop_map(|dice| Step::Deliver { dropped: dice == 0 }),
        5 => (0usize..2, 0u8..6, 0u8..6, 0u8..5)
            .prop_map(|(of, name, alias, dice)| Step::Put { of, name, alias, bad: dice == 0 }),
        2 => (0usize..2, 0u8..6).prop_map(|(of, name)| Step::Remove { of, name }),
        4 => key.prop_map(Step::Demand),
        2 => (0u64..4).prop_map(Step::Pass),
    ]
}

fn name(index: u8) -> String {
    format!("name-{index}")
}

fn alias(index: u8) -> String {
    format!("net/10.0.0.{index}")
}

/// The client, the server and the wire between them.
struct World {
    machine: Machine,
    now: Instant,
    server: Server,
    connected: bool,
    to_server: VecDeque<DeltaDiscoveryRequest>,
    to_client: VecDeque<DeltaDiscoveryResponse>,
    /// Keys that the client waits for.
    waiting: BTreeSet<String>,
    /// A response of this stream was dropped, so the server believes the client to hold what it does not.
    dropped: bool,
    last_outcome: Option<Outcome>,
}

impl World {
    fn new() -> Self {
        let types = vec![(TYPES[0].into(), Mode::Wildcard), (TYPES[1].into(), Mode::OnDemand)];
        let node = proto::Node { id: "me".to_owned(), ..Default::default() };
        let machine = Machine::new(Settings { outstanding_demands: 4, ..Settings::new(node, types) });
        Self {
            machine,
            now: Instant::now(),
            server: Server::default(),
            connected: false,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            waiting: BTreeSet::new(),
            dropped: false,
            last_outcome: None,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Connect if !self.connected => {
                self.machine.connected(self.now);
                self.server.connected();
                (self.connected, self.dropped) = (true, false);
            }
            Step::Disconnect if self.connected => self.disconnect(),
            Step::Connect | Step::Disconnect => {}
            Step::Flush => self.to_server.extend(std::iter::from_fn(|| self.machine.poll_request())),
            Step::Read => {
                if let Some(request) = self.to_server.pop_front() {
                    self.server.read(request);
                }
            }
            Step::Push(of) => self.to_client.extend(self.server.push(TYPES[of])),
            Step::Deliver { dropped } => self.deliver(dropped),
            Step::Put { of, name: index, alias: other, bad } => {
                self.server.put(TYPES[of], &name(index), &alias(other), bad);
            }
            Step::Remove { of, name: index } => self.server.remove(TYPES[of], &name(index)),
            Step::Demand(key) => {
                if let Ok(Demanded::Waiting) = self.machine.demand(&TYPES[1].into(), &key, self.now) {
                    self.waiting.insert(key);
                }
            }
            Step::Pass(seconds) => {
                self.now += Duration::from_secs(seconds);
                if self.machine.tick(self.now).is_err() {
                    self.disconnect();
                }
            }
        }
        while let Some(answered) = self.machine.poll_answered() {
            assert!(self.waiting.remove(answered.key.as_str()), "{answered:?} was not waited for");
            if answered.outcome == Outcome::Found {
                let again = self.machine.demand(&answered.type_url, answered.key.as_str(), self.now);
                assert_eq!(again, Ok(Demanded::Known(Outcome::Found)));
            }
            self.last_outcome = Some(answered.outcome);
        }
    }

    fn disconnect(&mut self) {
        self.machine.disconnected(&Lost::Closed, 0.5, self.now);
        self.server.disconnected();
        self.to_server.clear();
        self.to_client.clear();
        self.connected = false;
    }

    fn deliver(&mut self, dropped: bool) {
        let Some(response) = self.to_client.pop_front() else { return };
        let bad = response.resources.iter().any(server::is_bad);
        self.server.expect_answer(&response.nonce, bad || dropped);
        let mut lent = self.machine.received(response, self.now).expect("a known type");
        if dropped {
            self.dropped = true;
            return;
        }
        let verdict = |_: &ResourceName, body: &[u8]| if body == b"bad" { Err("it is bad") } else { Ok(()) };
        let (_, rejected) = lent.update().decode(verdict);
        lent.answer(rejected);
    }

    /// Everything on its way arrives, and the server has nothing more to say.
    fn settle(&mut self) {
        self.take(Step::Connect);
        loop {
            self.take(Step::Flush);
            while !self.to_server.is_empty() {
                self.take(Step::Read);
            }
            self.take(Step::Push(0));
            self.take(Step::Push(1));
            if self.to_client.is_empty() {
                break;
            }
            while !self.to_client.is_empty() {
                self.take(Step::Deliver { dropped: false });
            }
        }
    }

    fn held(&self, type_url: &str) -> BTreeMap<String, String> {
        self.machine
            .held(&type_url.into())
            .map(|(name, version)| (name.to_string(), version.to_string()))
            .collect()
    }

    /// Whatever happened before, asking is answered truthfully.
    fn ask(&mut self, key: &str) {
        self.last_outcome = None;
        let demanded = self.machine.demand(&TYPES[1].into(), key, self.now);
        self.waiting.insert(key.to_owned());
        let outcome = match demanded.expect("nothing else is waited for") {
            Demanded::Known(outcome) => {
                self.waiting.clear();
                outcome
            }
            Demanded::Waiting => {
                self.settle();
                self.last_outcome.expect("the server answers")
            }
        };
        let (good, bad) = self.server.knows(TYPES[1], key);
        match outcome {
            // A resource whose latest state was rejected is held as it was before, under its aliases of then.
            Outcome::Found => assert!(good || self.server.any_bad(TYPES[1]), "{key} is a stranger"),
            Outcome::Absent => assert!(!good && !bad, "{key} is there"),
            Outcome::Unavailable => assert!(bad, "{key} could have been applied"),
            Outcome::TimedOut => unreachable!("no time has passed"),
        }
    }

    fn check(&self) {
        assert!(self.server.all_answered(), "a response was not answered");
        assert!(self.waiting.is_empty(), "{:?} are waited for without end", self.waiting);
        for type_url in TYPES {
            let (held, there) = (self.held(type_url), self.server.there(type_url));
            for (name, (version, bad)) in there {
                match held.get(name) {
                    Some(held) if !bad => assert_eq!(held, version, "{type_url} {name}"),
                    Some(held) => assert_ne!(held, version, "{type_url} {name} was rejected"),
                    None => assert!(*bad || type_url == TYPES[1], "{type_url} {name} is not held"),
                }
            }
            for name in held.keys() {
                assert!(there.contains_key(name), "{type_url} {name} has gone");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_ends_agree_in_the_end(steps in proptest::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        if world.dropped && world.connected {
            world.disconnect();
        }
        world.settle();
        world.take(Step::Pass(5));
        world.settle();
        world.check();
        prop_assert!(world.machine.synced());
        for key in (0..6).flat_map(|index| [name(index), alias(index)]).chain(["stranger".to_owned()]) {
            world.ask(&key);
        }

        world.disconnect();
        let before = world.server.sent_good;
        world.settle();
        world.check();
        prop_assert_eq!(world.server.sent_good, before, "a new stream sends nothing that is held again");
    }
}
