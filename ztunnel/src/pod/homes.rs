//! On which workers a pod is served. It has a share on every one; one of them, its home, accepts, and has connections carried
//! where they belong. Homes are dealt out evenly among the active workers, and again when there are more or fewer of those.

use std::rc::Rc;
use std::sync::Arc;

use redirect::client::Listeners;

use super::manager::{Enrolled, Error, Local, Manager, duplicate};
use super::view::Shown;
use crate::identity::PodSvid;
use crate::proxy::{Arrival, Elsewhere, Live, Place, PodProxy};

impl Manager {
    /// The active worker that is home to the fewest pods.
    pub(super) fn next_home(&self) -> usize {
        let mut homes = vec![0_usize; self.workers.loads().active()];
        for pod in self.pods.values() {
            if let Some(count) = homes.get_mut(pod.home) {
                *count += 1;
            }
        }
        homes.iter().enumerate().min_by_key(|(_, count)| **count).map_or(0, |(home, _)| home)
    }

    /// Starts an enrolled pod on every worker, and then lets its home accept.
    pub(super) async fn start(&mut self, uid: &str) -> Result<(), Error> {
        let Some(pod) = self.pods.get(uid) else { return Ok(()) };
        let (home, listeners) = (pod.home, copies(uid, &pod.listeners)?);
        self.complete(uid).await?;
        self.listen(uid, home, listeners).await
    }

    /// Starts the pod on those workers where it is not.
    async fn complete(&mut self, uid: &str) -> Result<(), Error> {
        let Some(pod) = self.pods.get(uid) else { return Ok(()) };
        let svid = self.identities.pod_svid(pod.facts.identity.clone());
        for worker in pod.live.len()..self.workers.count() {
            let Some(pod) = self.pods.get(uid) else { return Ok(()) };
            let live = self.share(uid, pod, worker, svid.clone()).await?;
            if let Some(pod) = self.pods.get_mut(uid) {
                pod.live.push(live);
            }
        }
        if let Some(pod) = self.pods.get(uid) {
            self.view.show(uid, Shown::served(&pod.facts, pod.live.clone()));
        }
        Ok(())
    }

    async fn share(&self, uid: &str, pod: &Enrolled, worker: usize, svid: PodSvid) -> Result<Live, Error> {
        let live = Live::default();
        let (listed, facts, shared, stop) =
            (live.clone(), pod.facts.clone(), self.shared.clone(), pod.stop.clone());
        let (demands, asker) = (self.demands.clone(), uid.to_owned());
        let (room, loads, elsewhere) = (pod.room.clone(), self.workers.loads().clone(), self.elsewhere(uid));
        let start = move |local: &Rc<Local>| {
            let ask = Box::new(move |count| demands.add(&asker, worker, count));
            let neighbours = local.neighbours.clone();
            let elsewhere = elsewhere(local);
            let place = Place { worker, live: listed, neighbours, room, loads, elsewhere, stop };
            let pod = PodProxy::start(facts.clone(), shared, svid, ask, place);
            local.pods.borrow_mut().insert(facts.uid.clone(), pod);
        };
        self.on(uid, worker, start).await?;
        Ok(live)
    }

    /// The way from one worker's share of a pod to another's.
    fn elsewhere(&self, uid: &str) -> impl FnOnce(&Rc<Local>) -> Elsewhere + Send + use<> {
        // Not kept alive by what runs on them.
        let (workers, uid) = (Arc::downgrade(&self.workers), uid.to_owned());
        move |local| {
            let local = Rc::downgrade(local);
            Box::new(move |worker, arrival: Arrival| {
                let (Some(workers), Some(local)) = (workers.upgrade(), local.upgrade()) else { return };
                let uid = uid.clone();
                let receive = move |local: &Rc<Local>| match local.pod(&uid) {
                    Some(pod) => pod.receive(arrival),
                    None => tracing::debug!(pod = uid, "a connection came after its pod had gone"),
                };
                // A worker that does not come to its jobs would only delay it.
                if let Err(refused) = workers.try_run(worker, Box::new(receive)) {
                    refused(&local);
                }
            })
        }
    }

    async fn listen(&self, uid: &str, worker: usize, listeners: Listeners) -> Result<(), Error> {
        let pod = uid.to_owned();
        let listen = move |local: &Rc<Local>| local.pod(&pod).map_or(Ok(()), |found| found.listen(listeners));
        let listening = self.on(uid, worker, listen).await?;
        listening.map_err(|source| Error::Listeners { pod: uid.to_owned(), source })
    }

    /// A new agent opened new listeners for a pod that is served already.
    pub(super) async fn listen_again(&mut self, uid: &str, listeners: Listeners) -> Result<(), Error> {
        let Some(pod) = self.pods.get(uid) else { return Ok(()) };
        self.listen(uid, pod.home, copies(uid, &listeners)?).await?;
        if let Some(known) = self.pods.get_mut(uid) {
            known.listeners = listeners;
        }
        Ok(())
    }

    /// From now on so many workers take new connections. Those of a worker beyond them live on there. What fails leaves
    /// everything as it was served, and can be tried again.
    pub(super) async fn resize(&mut self, count: usize) -> Result<(), Error> {
        let before = self.workers.loads().active();
        self.workers.grow(count).map_err(Error::Grow)?;
        let mut uids: Vec<String> = self.pods.keys().cloned().collect();
        uids.sort_unstable();
        // First, or connections would be sent where nobody takes them.
        for uid in &uids {
            self.complete(uid).await?;
        }
        let active = self.workers.loads().set_active(count.min(self.workers.count()));
        self.shared.metrics.workers.set(i64::try_from(active).unwrap_or(i64::MAX));
        for (index, uid) in uids.iter().enumerate() {
            self.move_home(uid, index % active).await?;
        }
        tracing::info!(before, active, "the number of workers changed");
        Ok(())
    }

    async fn move_home(&mut self, uid: &str, home: usize) -> Result<(), Error> {
        let Some(pod) = self.pods.get_mut(uid) else { return Ok(()) };
        let before = pod.home;
        if before == home {
            return Ok(());
        }
        let listeners = copies(uid, &pod.listeners)?;
        self.listen(uid, home, listeners).await?;
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.home = home;
        }
        let asked = uid.to_owned();
        let deafen = move |local: &Rc<Local>| {
            if let Some(pod) = local.pod(&asked) {
                pod.deafen();
            }
        };
        self.on(uid, before, deafen).await
    }

    async fn on<T, F>(&self, uid: &str, worker: usize, job: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Rc<Local>) -> T + Send + 'static,
    {
        let called = self.workers.call(worker, job).await;
        called.map_err(|source| Error::Worker { pod: uid.to_owned(), source })
    }
}

fn copies(uid: &str, listeners: &Listeners) -> Result<Listeners, Error> {
    duplicate(listeners).map_err(|source| Error::Listeners { pod: uid.to_owned(), source })
}
