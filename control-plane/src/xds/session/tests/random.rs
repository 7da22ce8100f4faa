//! Many random stories: whatever happens, a client that is left alone ends up with what there is.

use std::collections::HashSet;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// A client as the protocol wants it: it applies what it hears and asks only for what it does not have.
#[derive(Default)]
struct Client {
    wildcard: bool,
    keys: Vec<String>,
    /// Name to version, body and alias.
    held: HashMap<String, (String, String, String)>,
    /// What it let go by name: that comes again when it changes, if it belongs to something.
    left: HashSet<String>,
    unanswered: Option<DeltaDiscoveryResponse>,
}

impl Client {
    fn begin(&self) -> DeltaDiscoveryRequest {
        let held = self.held.iter().map(|(name, (version, ..))| (name.clone(), version.clone())).collect();
        if self.wildcard {
            first("", "", held)
        } else {
            first(&format!("* {}", self.keys.join(" ")), "*", held)
        }
    }

    fn apply(&mut self, response: &DeltaDiscoveryResponse) {
        for resource in &response.resources {
            let body = String::from_utf8_lossy(&resource.resource.as_ref().unwrap().value).into_owned();
            let known = (resource.version.clone(), body, resource.aliases[0].clone());
            self.held.insert(resource.name.clone(), known);
            self.left.remove(&resource.name);
        }
        for name in &response.removed_resources {
            let both = response.resources.iter().any(|resource| resource.name == *name);
            assert!(!both, "{name} is there and gone in one response");
            self.held.remove(name);
        }
    }
}

struct Story {
    random: StdRng,
    script: Script,
    client: Client,
    /// Name to body, alias and what it belongs to.
    there: HashMap<String, (String, String, String)>,
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let settings = Settings {
            response_bytes: random.random_range(1..400),
            first_response_bytes: random.random_range(1..1000),
            ..Settings::default()
        };
        let mut script = Script::with(random.random_range(1..8), settings);
        script.kind = if random.random() { Kind::Address } else { Kind::Authorization };
        let client = Client { wildcard: random.random(), ..Client::default() };
        let mut story = Self { random, script, client, there: HashMap::new() };
        for _ in 0..story.random.random_range(0..20) {
            story.change();
        }
        story.say(story.client.begin());
        story
    }

    fn say(&mut self, request: DeltaDiscoveryRequest) {
        let type_url = self.script.kind.type_url().to_owned();
        self.script.say(DeltaDiscoveryRequest { type_url, ..request });
    }

    fn word(&mut self, prefix: &str) -> String {
        format!("{prefix}{}", self.random.random_range(0..10))
    }

    fn change(&mut self) {
        let name = self.word("n");
        if self.random.random_range(0..3) == 0 {
            self.script.remove(&name);
            self.there.remove(&name);
        } else {
            let (body, alias) = (self.word("body"), self.word("alias"));
            // What belongs to something has nothing that belongs to it.
            let owner = match self.random.random_range(0..5) {
                owner if *name >= *"n5" => format!("n{owner}"),
                _ => String::new(),
            };
            self.script.set_belonging(&[(&name, &body, &alias, &owner)]);
            self.there.insert(name, (body, alias, owner));
        }
    }

    fn reconnect(&mut self) {
        self.client.unanswered = None;
        self.script.reconnect();
        self.say(self.client.begin());
    }

    fn hear(&mut self) {
        if self.client.unanswered.is_some() {
            return;
        }
        loop {
            match self.script.session.poll(&self.script.store, self.script.now) {
                Ok(Step::Send(response)) => {
                    let response = decode(response);
                    self.client.apply(&response);
                    self.client.unanswered = Some(response);
                    return;
                }
                Ok(Step::Working) => {}
                Ok(Step::Idle) if self.script.session.waits_for_room() => {
                    // Sometimes much happens before there is room.
                    if self.random.random_range(0..3) > 0 {
                        return;
                    }
                    self.script.give_room();
                }
                Ok(Step::Idle) => return,
                Err(End::Behind(_)) => self.reconnect(),
                Err(end) => panic!("{end}"),
            }
        }
    }

    fn ask(&mut self) {
        let prefix = if self.random.random() { "n" } else { "alias" };
        let key = self.word(prefix);
        if let Some(known) = self.client.keys.iter().position(|known| *known == key) {
            self.client.keys.swap_remove(known);
            let keys = &self.client.keys;
            self.client.held.retain(|name, (.., alias)| *name != key || keys.contains(alias));
            self.client.left.insert(key.clone());
            self.say(change("", &key));
        } else {
            self.say(change(&key, ""));
            self.client.left.remove(&key);
            self.client.keys.push(key);
        }
    }

    fn step(&mut self) {
        match self.random.random_range(0..20) {
            0..8 => self.change(),
            8..12 => self.hear(),
            12..17 => {
                if let Some(response) = self.client.unanswered.take() {
                    self.say(answer(&response));
                }
            }
            17..19 if !self.client.wildcard => self.ask(),
            _ => self.reconnect(),
        }
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            if let Some(response) = self.client.unanswered.take() {
                self.say(answer(&response));
            }
            self.hear();
            if self.client.unanswered.is_none() && !self.script.session.waits_for_room() {
                return;
            }
        }
        panic!("it never ends");
    }

    /// Everything wanted is held as it is, and nothing is held that is not so any more.
    fn check(&self, seed: u64) {
        for (name, (body, alias, owner)) in &self.there {
            let asked = self.client.keys.iter().any(|key| key == name || key == alias);
            let belongs = self.client.held.contains_key(owner) && !self.client.left.contains(name);
            let wanted = self.client.wildcard || asked || belongs;
            let held = self.client.held.get(name).map(|(_, body, _)| body);
            assert!(
                held == Some(body) || !wanted && held.is_none(),
                "seed {seed}: {name} is {held:?}, not {body}"
            );
        }
        for name in self.client.held.keys() {
            assert!(self.there.contains_key(name), "seed {seed}: {name} is not there any more");
        }
    }
}

#[test]
fn a_client_left_alone_has_what_there_is() {
    for seed in 0..3000 {
        let mut story = Story::new(seed);
        for _ in 0..60 {
            story.step();
        }
        story.settle();
        story.check(seed);
    }
}
