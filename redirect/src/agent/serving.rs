//! Which proxies serve which pods, and who waits to hear of it.

use std::collections::HashMap;

use tokio::sync::oneshot;

use crate::broker::server::ProxyId;
use crate::source::Ask;

/// The proxy serves the pod, or why it cannot.
type Outcome = Result<(), String>;

#[derive(Default)]
pub(super) struct Serving {
    said: HashMap<String, HashMap<ProxyId, Outcome>>,
    waiting: Vec<(String, oneshot::Sender<Outcome>)>,
}

impl Serving {
    pub(super) fn said(&mut self, proxy: ProxyId, uid: &str, outcome: Outcome) {
        for (_, answer) in self.waiting.extract_if(.., |(asked, _)| asked == uid) {
            // Who asked may have gone.
            let _ = answer.send(outcome.clone());
        }
        self.said.entry(uid.to_owned()).or_default().insert(proxy, outcome);
    }

    /// Answers now if a proxy has spoken, else as soon as one does.
    pub(super) fn ask(&mut self, Ask { uid, answer }: Ask) {
        let said = self.said.get(&uid).into_iter().flat_map(HashMap::values);
        // One that serves it counts before those that cannot.
        match said.min_by_key(|outcome| outcome.is_err()) {
            Some(outcome) => drop(answer.send(outcome.clone())),
            None => {
                self.waiting.retain(|(_, answer)| !answer.is_closed());
                self.waiting.push((uid, answer));
            }
        }
    }

    /// Those that serve it.
    pub(super) fn proxies(&self, uid: &str) -> Vec<ProxyId> {
        let said = self.said.get(uid).into_iter().flatten();
        let mut serving: Vec<_> = said.filter(|(_, said)| said.is_ok()).map(|(proxy, _)| *proxy).collect();
        serving.sort_unstable();
        serving
    }

    /// The pod has changed: what was said of it is no longer true.
    pub(super) fn changed(&mut self, uid: &str) {
        self.said.remove(uid);
    }

    pub(super) fn left(&mut self, proxy: ProxyId) {
        self.said.values_mut().for_each(|said| drop(said.remove(&proxy)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(serving: &mut Serving) -> oneshot::Receiver<Outcome> {
        let (answer, outcome) = oneshot::channel();
        serving.ask(Ask { uid: "u".into(), answer });
        outcome
    }

    #[test]
    fn what_a_proxy_says_is_true_until_it_leaves_or_the_pod_changes() {
        let mut serving = Serving::default();
        let mut first = ask(&mut serving);
        serving.said(1, "other", Ok(()));
        assert!(first.try_recv().is_err(), "nobody spoke of it");
        serving.said(1, "u", Err("why".into()));
        assert_eq!(first.try_recv(), Ok(Err("why".into())));
        assert_eq!(ask(&mut serving).try_recv(), Ok(Err("why".into())));
        serving.said(2, "u", Ok(()));
        assert_eq!(ask(&mut serving).try_recv(), Ok(Ok(())));
        serving.left(2);
        assert_eq!(ask(&mut serving).try_recv(), Ok(Err("why".into())));
        serving.changed("u");
        assert!(ask(&mut serving).try_recv().is_err(), "it must be said again");
    }
}
