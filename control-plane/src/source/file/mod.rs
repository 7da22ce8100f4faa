//! A folder of Kubernetes manifests that is followed: YAML and JSON, several documents to a file, folders below it too.
//! Names that start with a dot are passed over.
//!
//! Bad input loses nothing that worked. A document that becomes malformed keeps its last good object; a file that cannot
//! be read or parsed, or that is empty for the moment, keeps all of its own; an object is removed when its document is
//! gone from a file that can be read, or the file is gone. Of two documents with one key the one that stands already
//! stays.
//!
//! A new policy with mistakes is put into effect all the same, because without it everything would be open. Whoever wrote
//! it meant to close something; what cannot be read may have closed more, so it is closed until the mistake is mended:
//!
//! | Mistake | What is in force |
//! |---|---|
//! | a value that cannot be read, in a field that can | the index reads it on the safe side |
//! | a field of a rule: unknown, or not of its kind | ALLOW: the rule allows nobody. DENY: the rule without this field, which denies more |
//! | any other field of an AuthorizationPolicy beside its rules | ALLOW: nobody is allowed by it. DENY: it denies by its rules, and everybody if these cannot be read |
//! | the action, or what may be it | everybody is denied: another policy may allow what this one was to deny |
//! | the selector | as above, in the whole namespace |
//! | anything in a PeerAuthentication | STRICT on every port, before all others of its level; without a readable selector for the whole namespace |
//! | the name or the namespace, or the text is no document | nothing is in force; the mistake is told |
//!
//! Fields for waypoints (targetRefs) stay the waypoints'. Once a good version was read, mistakes leave that in force.
//!
//! Must not know what objects mean.

mod core;
mod manifest;
mod policy;
mod text;
pub mod walk;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask, Watches};
use tokio::time::{Instant, timeout};
use ztunnel_model::codec::located::{self, Document};

pub(in crate::source) use self::manifest::Manifest;
use self::walk::{Contents, walk};
use crate::object::{Change, Key, Object};

/// A program that writes a file does so in several steps; the folder is read when it has been quiet so long.
const QUIET: Duration = Duration::from_millis(20);
/// A folder that is never quiet is read after so long.
const LONGEST_UNREST: Duration = Duration::from_millis(200);
/// Looked at besides the notifications: they can be lost, and links can lead out of the folder.
const PERIOD: Duration = Duration::from_secs(5);

/// A mistake, and which document of the file makes it, counted from 1; 0 is the file itself, or an object that stands in
/// none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub document: usize,
    pub at: located::Mistake,
    /// What the document describes, if it says so.
    pub object: Option<Key>,
}

/// The folder as it was last read.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    held: HashMap<Key, Held>,
    mistakes: Vec<Mistake>,
    watches: Option<Watches>,
    events: Events,
    /// Something happened in the folder since it was read.
    unread: bool,
}

#[derive(Debug)]
enum Events {
    /// Asked for, not read yet: reading needs a runtime.
    Ready(Inotify),
    Read(EventStream<Vec<u8>>),
    None,
}

#[derive(Debug)]
struct File {
    text: String,
    manifests: Vec<(usize, Manifest)>,
}

#[derive(Debug)]
struct Held {
    file: PathBuf,
    object: Object,
    /// Nothing was wrong with it.
    is_good: bool,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let located::Mistake { file, line, column, path, reason } = &self.at;
        match self.document {
            0 => write!(f, "{file}: ")?,
            document => write!(f, "{file}:{line}:{column}: document {document}: ")?,
        }
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        f.write_str(reason)
    }
}

impl Folder {
    /// Reads the folder; from here on no change is missed.
    pub fn open(path: &Path) -> (Self, Vec<Change>, Vec<Mistake>) {
        let inotify = Inotify::init()
            .inspect_err(
                |error| tracing::warn!(%error, "the folder of manifests is looked at periodically only"),
            )
            .ok();
        let mut folder = Self {
            path: path.to_owned(),
            files: BTreeMap::new(),
            held: HashMap::new(),
            mistakes: Vec::new(),
            watches: inotify.as_ref().map(Inotify::watches),
            events: inotify.map_or(Events::None, Events::Ready),
            unread: false,
        };
        let changes = folder.read();
        let mistakes = folder.mistakes.clone();
        (folder, changes, mistakes)
    }

    /// Waits until objects or mistakes differ, and says how; all mistakes there are now come along. Nothing is lost
    /// when the waiting is given up.
    pub async fn next(&mut self) -> (Vec<Change>, Vec<Mistake>) {
        loop {
            self.wait().await;
            let before = self.mistakes.clone();
            let changes = self.read();
            if !changes.is_empty() || before != self.mistakes {
                return (changes, self.mistakes.clone());
            }
        }
    }

    async fn wait(&mut self) {
        if let Events::Ready(_) = self.events
            && let Events::Ready(inotify) = std::mem::replace(&mut self.events, Events::None)
        {
            match inotify.into_event_stream(vec![0; 4096]) {
                Ok(events) => self.events = Events::Read(events),
                Err(error) => {
                    tracing::warn!(%error, "the folder of manifests is looked at periodically only");
                }
            }
        }
        let Events::Read(events) = &mut self.events else {
            return tokio::time::sleep(PERIOD).await;
        };
        if !self.unread {
            if timeout(PERIOD, events.next()).await.is_err() {
                return;
            }
            // The waiting may be given up from here on, and this event is not told again.
            self.unread = true;
        }
        let latest = Instant::now() + LONGEST_UNREST;
        while Instant::now() < latest && timeout(QUIET, events.next()).await.is_ok() {}
    }

    fn read(&mut self) -> Vec<Change> {
        self.unread = false;
        let watches = &mut self.watches;
        // Watched before it is read, so that what comes after the reading is told.
        let contents = walk(&self.path, |folder| {
            let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::CREATE | WatchMask::DELETE;
            if let Some(Err(error)) = watches.as_mut().map(|watches| watches.add(folder, mask)) {
                tracing::warn!(folder = %folder.display(), %error, "folder is looked at periodically only");
            }
        });
        let Contents { files, unreadable } = contents;
        let mut mistakes: Vec<Mistake> =
            unreadable.iter().map(|(path, reason)| whole(path, reason)).collect();
        let kept = |path: &Path| unreadable.iter().any(|(lost, _)| path.starts_with(lost));
        self.files.retain(|path, _| files.contains_key(path) || kept(path));
        for (path, text) in files {
            let file = self.files.get(&path);
            if file.is_some_and(|file| file.text == text) {
                continue;
            }
            if text.is_empty() && file.is_some_and(|file| !file.text.is_empty()) {
                mistakes.push(whole(&path, "is empty, its objects stay; remove the file to remove them"));
                continue;
            }
            let manifests = parse(&text, &path);
            self.files.insert(path, File { text, manifests });
        }
        let changes = self.merge(&mut mistakes);
        mistakes.sort_by(|a, b| {
            let order = |one: &Mistake| (one.document, one.at.line, one.at.column);
            (&a.at.file, order(a)).cmp(&(&b.at.file, order(b)))
        });
        if mistakes != self.mistakes {
            mistakes.iter().for_each(|mistake| tracing::warn!("{mistake}"));
            self.mistakes = mistakes;
        }
        changes
    }

    /// Chooses the document that stands for each key, and compares with what is held.
    fn merge(&mut self, mistakes: &mut Vec<Mistake>) -> Vec<Change> {
        let mut standing: BTreeMap<&Key, (&Path, usize, &Manifest)> = BTreeMap::new();
        let mut broken: Vec<&Path> = Vec::new();
        let all = self.files.iter().flat_map(|(path, file)| {
            file.manifests.iter().map(move |(number, manifest)| (path.as_path(), *number, manifest))
        });
        for (path, number, manifest) in all {
            let at = |at: &located::Mistake| Mistake {
                document: number,
                at: at.clone(),
                object: manifest.key.clone(),
            };
            mistakes.extend(manifest.mistakes.iter().map(at));
            let Some(key) = &manifest.key else {
                broken.push(path);
                continue;
            };
            let Some(&(first, ..)) = standing.get(key) else {
                standing.insert(key, (path, number, manifest));
                continue;
            };
            let holder = self.held.get(key).map(|held| held.file.as_path());
            if holder == Some(path) && first != path {
                let loser = standing.insert(key, (path, number, manifest));
                mistakes.extend(loser.map(|loser| twice(key, loser, (path, number, manifest))));
            } else {
                mistakes.push(twice(key, (path, number, manifest), standing[key]));
            }
        }
        let gone =
            |key: &Key, held: &Held| !standing.contains_key(key) && !broken.contains(&held.file.as_path());
        let gone: Vec<Key> =
            self.held.iter().filter(|(key, held)| gone(key, held)).map(|(key, _)| key.clone()).collect();
        let mut changes: Vec<Change> = gone.iter().cloned().map(Change::Remove).collect();
        changes.sort_by_key(|change| match change {
            Change::Remove(key) => key.clone(),
            Change::Set(object) => object.key(),
        });
        gone.iter().for_each(|key| drop(self.held.remove(key)));
        for (key, (path, _, manifest)) in standing {
            let held = self.held.get(key);
            let Some(object) = &manifest.object else { continue };
            if held.is_some_and(|held| held.object == *object && held.file == path)
                || (held.is_some_and(|held| held.is_good) && !manifest.mistakes.is_empty())
            {
                continue;
            }
            if held.is_none_or(|held| held.object != *object) {
                changes.push(Change::Set(object.clone()));
            }
            let is_good = manifest.mistakes.is_empty();
            let held = Held { file: path.to_owned(), object: object.clone(), is_good };
            self.held.insert(key.clone(), held);
        }
        changes
    }
}

fn parse(text: &str, path: &Path) -> Vec<(usize, Manifest)> {
    let name = path.display().to_string();
    let documents = Document::parse_all(text, &name).into_iter().enumerate();
    let manifests = documents.flat_map(|(index, document)| {
        let mut manifests = match document {
            Ok(document) => manifest::read(&document.root()),
            Err(mistake) => {
                vec![Manifest { key: None, object: None, line: mistake.line, mistakes: vec![mistake] }]
            }
        };
        for unread in manifests.iter_mut().filter_map(|one| one.object.as_mut()).flat_map(Object::unread_mut)
        {
            unread.document = index + 1;
        }
        manifests.into_iter().map(move |manifest| (index + 1, manifest))
    });
    manifests.collect()
}

/// An object that stands in no file. Lines and columns of its mistakes would say nothing.
pub(in crate::source) fn read_json(text: &str, origin: &str) -> Manifest {
    let placeless = |at: &mut located::Mistake| (at.line, at.column) = (0, 0);
    let read = Document::parse(text, origin).map(|document| manifest::read(&document.root()).pop());
    let mut manifest = match read {
        Ok(Some(manifest)) => manifest,
        Ok(None) => Manifest { key: None, object: None, line: 0, mistakes: Vec::new() },
        Err(mistake) => Manifest { key: None, object: None, line: 0, mistakes: vec![mistake] },
    };
    manifest.mistakes.iter_mut().for_each(placeless);
    let unread = manifest.object.iter_mut().flat_map(|object| object.unread_mut());
    unread.for_each(|unread| placeless(&mut unread.at));
    manifest
}

fn whole(path: &Path, reason: &str) -> Mistake {
    let file = path.display().to_string();
    let (path, reason) = (String::new(), reason.to_owned());
    let at = located::Mistake { file, line: 0, column: 0, path, reason };
    Mistake { document: 0, at, object: None }
}

fn twice(
    key: &Key,
    (path, document, manifest): (&Path, usize, &Manifest),
    (first, _, standing): (&Path, usize, &Manifest),
) -> Mistake {
    let reason = format!(
        "{key} stands in {}:{} already, which is in force; remove one",
        first.display(),
        standing.line
    );
    let file = path.display().to_string();
    Mistake {
        document,
        at: located::Mistake { file, line: manifest.line, column: 1, path: String::new(), reason },
        object: Some(key.clone()),
    }
}

/// The objects of one text, which must be without mistakes.
#[cfg(test)]
pub(crate) fn objects(text: &str) -> Vec<Object> {
    let manifests = parse(text, Path::new("test.yaml"));
    let one = |(_, manifest): (usize, Manifest)| {
        assert!(manifest.mistakes.is_empty(), "{:#?}", manifest.mistakes);
        manifest.object.expect("a manifest without mistakes is an object")
    };
    manifests.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests;
