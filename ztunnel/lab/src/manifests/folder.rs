//! The user's folder: what of its manifests a lab needs, held on to while a file is malformed.
//!
//! The rules are those of the controller, which reads the same folder: a document with a mistake keeps what it said last,
//! an object goes when its document is gone from a file that can be read, or the file is. Mistakes are the controller's,
//! and beside them what only a lab minds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use control_plane::source::file;
use control_plane::source::file::walk::{Contents, walk};
use serde_json::Value;
use ztunnel_model::codec::located::{self, Document, Place};

use super::controller::{self, Controller};
use super::{EXTERNAL, Mistake, PROXY_ANNOTATION, in_order};
use crate::lab::{RESERVED, is_label, is_name};

/// A DNS label (RFC 1123) has so many letters.
const LONGEST_LABEL: usize = 63;
const LONGEST_NAME: usize = crate::lab::LONGEST_NAME;
/// Kinds that the controller reads and the lab does not need.
const OF_THE_CONTROLLER: [&str; 4] =
    ["ServiceAccount", "EndpointSlice", "AuthorizationPolicy", "PeerAuthentication"];

/// A folder of manifests as it was last read.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    contents: Option<Contents>,
    /// Itself and all folders below it.
    folders: Vec<PathBuf>,
    held: BTreeMap<Key, Held>,
    mistakes: Vec<Mistake>,
    unread: BTreeMap<String, usize>,
}

/// Kind, namespace and name; the namespace of what has none is empty.
pub(super) type Key = (String, String, String);

#[derive(Clone, Debug)]
pub(super) struct Held {
    pub body: Body,
    pub name: Spot,
    /// Where its `spec.nodeName` stands.
    pub node_name: Spot,
    /// Where a Service's own addresses stand.
    pub cluster_ip: Spot,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    /// A Namespace, Node, Pod or Service as it is written.
    Manifest(Value),
    Controller(Controller),
}

/// A place that a mistake may be found at later.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    document: usize,
    at: located::Mistake,
}

/// A document that the lab needs; without a key it does not say what it describes.
struct Written {
    key: Option<Key>,
    held: Option<Held>,
    document: usize,
    mistakes: Vec<located::Mistake>,
}

impl Spot {
    fn new(document: usize, place: &Place<'_>) -> Self {
        Self { document, at: place.mistake("") }
    }

    pub(super) fn mistake(&self, reason: impl Into<String>) -> Mistake {
        let at = located::Mistake { reason: reason.into(), ..self.at.clone() };
        Mistake { document: self.document, at, object: None }
    }

    /// `FILE:LINE`
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.at.file, self.at.line)
    }

    fn is_in(&self, file: &Path) -> bool {
        Path::new(&self.at.file) == file
    }
}

impl Folder {
    /// A folder that was not read yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            contents: None,
            folders: Vec::new(),
            held: BTreeMap::new(),
            mistakes: Vec::new(),
            unread: BTreeMap::new(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong now.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }

    /// Kinds that nobody reads here, and how many objects there are of each.
    pub fn unread(&self) -> &BTreeMap<String, usize> {
        &self.unread
    }

    /// Itself and all folders below it, as they were last read.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().map(PathBuf::as_path)
    }

    pub(super) fn held(&self) -> &BTreeMap<Key, Held> {
        &self.held
    }

    /// Reads the folder; whether any file differs from what was read before.
    pub fn read(&mut self) -> bool {
        let mut folders = Vec::new();
        let contents = walk(&self.path, |folder| folders.push(folder.to_owned()));
        let before = std::mem::replace(&mut self.folders, folders);
        if self.contents.as_ref() == Some(&contents) && self.folders == before {
            return false;
        }
        let (_, _, mut mistakes) = file::Folder::open(&self.path);
        self.unread.clear();
        let mut standing: BTreeSet<Key> = BTreeSet::new();
        // Files whose objects stay although their documents cannot be found.
        let mut broken: Vec<&Path> = contents.unreadable.iter().map(|(path, _)| path.as_path()).collect();
        for (path, text) in &contents.files {
            let shown = path.display().to_string();
            if text.is_empty() && self.held.values().any(|held| held.name.is_in(path)) {
                mistakes.push(whole(&shown, "is empty, its objects stay; remove the file to remove them"));
                broken.push(path);
            }
            for mut written in self.documents(text, &shown) {
                let Some(key) = written.key else {
                    broken.push(path);
                    continue;
                };
                let own =
                    |mistake: &Mistake| mistake.document == written.document && mistake.at.file == shown;
                let is_first = standing.insert(key.clone());
                if !is_first && !mistakes.iter().any(own) {
                    let name = written.held.as_ref().map(|held| held.name.at.clone());
                    let reason =
                        format!("{} {}/{} stands in the folder twice; remove one", key.0, key.1, key.2);
                    written.mistakes.extend(name.map(|at| located::Mistake { reason, ..at }));
                }
                let is_good = is_first && written.mistakes.is_empty() && !mistakes.iter().any(own);
                let told = written.mistakes.drain(..);
                mistakes.extend(told.map(|at| Mistake { document: written.document, at, object: None }));
                if let Some(held) = written.held.filter(|_| is_good) {
                    self.held.insert(key, held);
                }
            }
        }
        self.held.retain(|key, held| {
            standing.contains(key)
                || broken.iter().any(|lost| Path::new(&held.name.at.file).starts_with(lost))
        });
        self.mistakes = in_order(mistakes);
        self.contents = Some(contents);
        true
    }

    fn documents(&mut self, text: &str, file: &str) -> Vec<Written> {
        let mut all = Vec::new();
        for (index, document) in Document::parse_all(text, file).into_iter().enumerate() {
            match document {
                Ok(document) => self.take(&document.root(), index + 1, &mut all),
                // The controller's reading has told it.
                Err(_) => {
                    all.push(Written { key: None, held: None, document: index + 1, mistakes: Vec::new() });
                }
            }
        }
        all
    }

    fn take(&mut self, root: &Place<'_>, document: usize, all: &mut Vec<Written>) {
        let text = |key: &str| root.get(key).and_then(|place| place.text());
        let (Some(version), Some(kind)) = (text("apiVersion"), text("kind")) else { return };
        if kind == "List" || (kind.ends_with("List") && root.get("items").is_some()) {
            return root.key("items").items().for_each(|item| self.take(&item, document, all));
        }
        let group = version.rsplit_once('/').map_or("", |(group, _)| group);
        let is_read = match kind {
            "Namespace" | "Node" | "Pod" | "Service" => group.is_empty(),
            "Job" => group == "batch",
            kind if controller::is_controller(kind) => group == "apps",
            kind => {
                if !OF_THE_CONTROLLER.contains(&kind) {
                    *self.unread.entry(kind.to_owned()).or_default() += 1;
                }
                return;
            }
        };
        if is_read {
            all.push(read(root, kind, document));
        } else {
            *self.unread.entry(format!("{group}/{kind}")).or_default() += 1;
        }
    }
}

fn read(root: &Place<'_>, kind: &str, document: usize) -> Written {
    let metadata = root.key("metadata");
    let text = |key: &str| metadata.get(key).and_then(|place| place.text()).filter(|text| !text.is_empty());
    let Some(name) = text("name") else {
        return Written { key: None, held: None, document, mistakes: Vec::new() };
    };
    let namespace = match kind {
        "Namespace" | "Node" => "",
        _ => text("namespace").unwrap_or("default"),
    };
    let mut mistakes = Vec::new();
    check_name(kind, name, &metadata, &mut mistakes);
    if kind == "Node" {
        check_annotation(&metadata, &mut mistakes);
    }
    let pod = if controller::is_controller(kind) { root.key("spec").key("template") } else { *root };
    let spec = pod.key("spec");
    if kind != "Service" && spec.get("hostNetwork").is_some_and(|place| is_true(&place)) {
        let reason = "a pod in its node's own network cannot be in a lab: a pod here is a network namespace; leave it out";
        mistakes.push(spec.key("hostNetwork").mistake(reason));
    }
    let body = if controller::is_controller(kind) {
        controller::read(root, kind, (namespace, name), &mut mistakes).map(Body::Controller)
    } else {
        root.decode::<Value>(&mut mistakes).map(Body::Manifest)
    };
    let held = body.map(|body| Held {
        body,
        name: Spot::new(document, &metadata.key("name")),
        node_name: Spot::new(document, &spec.key("nodeName")),
        cluster_ip: Spot::new(document, &spec.get("clusterIP").unwrap_or_else(|| spec.key("clusterIPs"))),
    });
    Written { key: Some((kind.to_owned(), namespace.to_owned(), name.to_owned())), held, document, mistakes }
}

/// Names become files, folders and network namespaces.
fn check_name(kind: &str, name: &str, metadata: &Place<'_>, mistakes: &mut Vec<located::Mistake>) {
    let place = metadata.key("name");
    if kind == "Node" {
        if !is_name(name) {
            let reason =
                format!("a lab's node has a name of 1 to {LONGEST_NAME} of a-z, 0-9 and -, not {name:?}");
            mistakes.push(place.mistake(reason));
        }
        if RESERVED.contains(&name) {
            mistakes.push(place.mistake(format!("the lab itself needs the name {name}")));
        }
        return;
    }
    if kind != "Pod" && !controller::is_controller(kind) {
        return;
    }
    for (key, place) in [
        (Some(name), place),
        (metadata.get("namespace").and_then(|one| one.text()), metadata.key("namespace")),
    ] {
        if key.is_some_and(|text| !is_label(text, LONGEST_LABEL)) {
            let reason = format!(
                "names a network namespace in a lab and must be 1 to {LONGEST_LABEL} of a-z, 0-9 and -"
            );
            mistakes.push(place.mistake(reason));
        }
    }
}

fn check_annotation(metadata: &Place<'_>, mistakes: &mut Vec<located::Mistake>) {
    let annotation = metadata.get("annotations").and_then(|place| place.get(PROXY_ANNOTATION));
    if let Some(place) = annotation
        && place.text() != Some(EXTERNAL)
    {
        mistakes.push(place.mistake(format!(
            "the one value is \"{EXTERNAL}\"; leave the annotation out for the lab's own proxy"
        )));
    }
}

fn is_true(place: &Place<'_>) -> bool {
    place.decode::<bool>(&mut Vec::new()) == Some(true)
}

fn whole(file: &str, reason: &str) -> Mistake {
    let (path, reason) = (String::new(), reason.to_owned());
    let at = located::Mistake { file: file.to_owned(), line: 0, column: 0, path, reason };
    Mistake { document: 0, at, object: None }
}
