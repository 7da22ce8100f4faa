//! Keeping a lab in step with its folder of manifests.
//!
//! Policies do not pass here: the controller follows the folder by itself. What passes here is what a cluster does to
//! pods and services: it makes network namespaces, gives addresses, and tells agents and controller.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::Lab;
use crate::error::Error;
use crate::lab::{pod_handle, state_folder, write};
use crate::manifests::{Cluster, Folder, Plan, in_order, meshed, plan};
use crate::node::PodHandle;
use crate::wait::ready;

/// Looked at besides the notifications: they can be lost, and links can lead out of the folder.
const PERIOD: Duration = Duration::from_secs(5);
/// A program that writes a file does so in several steps; the folder is read when it has been quiet so long.
const QUIET: Duration = Duration::from_millis(20);
/// A folder that is never quiet is read after so long.
const LONGEST_UNREST: Duration = Duration::from_millis(200);

/// Follows the folder of a lab that is up, until the lab is down. Says on standard error what it could not do.
pub fn follow(name: &str) -> Result<(), Error> {
    let mut lab = Lab::attach(name)?;
    lab.source = Some(Folder::new(&lab.record.manifests));
    let state = state_folder(name)?;
    let mut watch = Watch::new();
    while state.exists() {
        // Read again when what the first reading found is watched, so that what comes after is told.
        for _ in 0..2 {
            if let Err(error) = lab.sync() {
                eprintln!("{error}");
                lab.incomplete = true;
            }
            watch.cover(&lab);
        }
        watch.wait();
    }
    Ok(())
}

impl Lab {
    /// The plan of a lab that is not made yet; any mistake refuses it.
    pub(crate) fn first_plan(&mut self) -> Result<Plan, Error> {
        let source = self.source.as_mut().expect("invariant: who makes a lab has its folder");
        source.read();
        let plan = plan(source, &self.record.cluster);
        let mistakes: Vec<_> = source.mistakes().iter().chain(&plan.mistakes).cloned().collect();
        if mistakes.is_empty() { Ok(plan) } else { Err(Error::Mistakes(in_order(mistakes))) }
    }

    /// Reads the folder and does what has changed. What is malformed there stays as it was.
    pub fn sync(&mut self) -> Result<(), Error> {
        let Some(source) = &mut self.source else { return Ok(()) };
        if !source.read() && !self.incomplete {
            return Ok(());
        }
        let plan = plan(source, &self.record.cluster);
        self.carry_out(plan)
    }

    pub(crate) fn carry_out(&mut self, mut plan: Plan) -> Result<(), Error> {
        let added = self.added_folder();
        write_if_new(self.added_manifests(), &plan.manifests.to_string())?;
        let meshed = meshed(&added);
        plan.cluster.pods.iter_mut().for_each(|pod| pod.mesh = meshed.contains(&pod.uid()));
        let wanted = &plan.cluster.pods;
        let (stay, gone): (Vec<&PodHandle>, Vec<&PodHandle>) =
            self.pods.iter().partition(|handle| wanted.iter().any(|pod| pod.is_same_instance(handle.spec())));
        gone.iter().try_for_each(|handle| self.remove_pod(handle.spec()))?;
        let is_there = |handle: &PodHandle, path: &str| handle.spec().path() == path;
        let (mut present, fresh): (Vec<_>, Vec<_>) =
            wanted.iter().partition(|pod| stay.iter().any(|handle| is_there(handle, &pod.path())));
        // One that moved is withdrawn from its old place before it is enrolled in the new one.
        if !gone.is_empty() {
            self.write_pods(&present)?;
        }
        let mut failures = Vec::new();
        for pod in fresh {
            match self.build_pod(&plan.cluster, pod) {
                Ok(()) => present.push(pod),
                Err(error) => failures.push(format!("pod {} cannot be made: {error}", pod.path())),
            }
        }
        self.write_pods(&present)?;
        let mut pods: Vec<_> = present.into_iter().cloned().collect();
        pods.sort_by_key(|pod| (pod.namespace.clone(), pod.name.clone()));
        self.pods = pods.iter().map(|pod| pod_handle(&self.name, pod)).collect();
        self.record.cluster = Cluster { pods, ..plan.cluster };
        self.incomplete = !failures.is_empty();
        if let Some(source) = &self.source {
            let told = in_order(source.mistakes().iter().chain(&plan.mistakes).cloned().collect());
            let told = told.iter().map(ToString::to_string);
            self.record.mistakes = told.chain(failures.iter().cloned()).collect();
            self.record.unread = source.unread().clone();
        }
        self.record.write(&self.folder())?;
        if failures.is_empty() { Ok(()) } else { Err(Error::Pods(failures.join("; "))) }
    }
}

/// A file that stays the same is not touched, so that nobody reads it again.
fn write_if_new(path: PathBuf, text: &str) -> Result<(), Error> {
    if fs::read_to_string(&path).is_ok_and(|held| held == text) { Ok(()) } else { write(&path, text) }
}

/// Notifications of the folder; without them it is looked at periodically.
struct Watch(Option<Inotify>);

impl Watch {
    fn new() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        Self(
            inotify.inspect_err(|error| eprintln!("the folder is looked at periodically only: {error}")).ok(),
        )
    }

    /// Watches every folder that there is now; one that is watched already stays so.
    fn cover(&self, lab: &Lab) {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE;
        let (Some(inotify), Some(source)) = (&self.0, &lab.source) else { return };
        for folder in std::iter::once(source.path()).chain(source.folders()) {
            // A folder that is gone by now told so before.
            let _ = inotify.add_watch(folder, flags);
        }
    }

    /// Until something happened and it is quiet again, at most for a period.
    fn wait(&mut self) {
        let Some(inotify) = &self.0 else { return std::thread::sleep(PERIOD) };
        let told = |deadline| {
            let one = std::iter::once((inotify.as_fd(), PollFlags::POLLIN));
            ready(one, deadline).is_ok() && inotify.read_events().is_ok()
        };
        if !told(PERIOD) {
            return;
        }
        let latest = Instant::now() + LONGEST_UNREST;
        while Instant::now() < latest && told(QUIET) {}
    }
}
