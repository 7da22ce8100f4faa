//! Pods from a JSON file, `{"pods": [{"uid", "name", "namespace", "serviceAccount", "netns", "addresses"}]}`, which is
//! followed. A file that cannot be used changes nothing.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{Pod, Update};
use crate::netns::Place;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("pods file {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("pods file {path}: {source}")]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("pods file {path}: pod {uid} is listed twice")]
    Twice { path: PathBuf, uid: String },
    #[error("pods file {path}: pod {uid} has the network namespace {netns} that another pod has")]
    Shared { path: PathBuf, uid: String, netns: Place },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    pods: Vec<Pod>,
}

/// Looked at besides the notifications, so that a lost one costs a moment and not a pod.
const PERIOD: Duration = Duration::from_secs(1);

/// Sends the pods of the file now and after each change, until nobody listens.
pub async fn follow(path: PathBuf, pods: mpsc::Sender<Update>) {
    let mut last = None;
    let mut events = watch(&path);
    loop {
        let text = std::fs::read_to_string(&path);
        let same = matches!((&text, &last), (Ok(text), Some(last)) if text == last);
        if !same {
            match text.map_err(|source| Error::Read { path: path.clone(), source }).and_then(|text| {
                let parsed = parse(&text, &path);
                last = Some(text);
                parsed
            }) {
                Ok(found) => {
                    let update = Update { pods: found, complete: true, ..Update::default() };
                    if pods.send(update).await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::error!(%error, "pods file not usable, pods stay as they are"),
            }
        }
        match &mut events {
            // Whatever happened in the folder leads to a look at the file.
            Some(events) => drop(tokio::time::timeout(PERIOD, events.next()).await),
            None => tokio::time::sleep(PERIOD).await,
        }
    }
}

fn watch(path: &Path) -> Option<EventStream<Vec<u8>>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
    let started = Inotify::init().and_then(|events| {
        events.watches().add(folder, mask)?;
        events.into_event_stream(vec![0; 4096])
    });
    started
        .inspect_err(|error| tracing::warn!(%error, folder = %folder.display(), "pods file is looked at periodically only"))
        .ok()
}

fn parse(text: &str, path: &Path) -> Result<Vec<Pod>, Error> {
    let document: Document =
        serde_json::from_str(text).map_err(|source| Error::Parse { path: path.to_owned(), source })?;
    let (mut uids, mut namespaces) = (HashSet::new(), HashSet::new());
    for Pod { uid, netns, .. } in &document.pods {
        if !uids.insert(uid) {
            return Err(Error::Twice { path: path.to_owned(), uid: uid.clone() });
        }
        if !namespaces.insert(netns.path()) {
            return Err(Error::Shared { path: path.to_owned(), uid: uid.clone(), netns: netns.clone() });
        }
    }
    Ok(document.pods)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_name_file_line_and_key() {
        let path = Path::new("pods.json");
        let good = r#"{"pods":[{"uid":"u","name":"n","namespace":"s","serviceAccount":"a","netns":"/x","addresses":["10.0.0.1"]}]}"#;
        assert_eq!(parse(good, path).expect("valid").len(), 1);
        let wrong =
            parse("{\"pods\":[\n{\"uid\":\"u\",\"colour\":1}]}", path).expect_err("unknown key").to_string();
        assert!(
            wrong.contains("pods.json") && wrong.contains("colour") && wrong.contains("line 2"),
            "{wrong}"
        );
        let pod = &good[9..good.len() - 2];
        let twice = format!("{{\"pods\":[{pod},{pod}]}}");
        assert!(matches!(parse(&twice, path), Err(Error::Twice { .. })));
        let shared = format!("{{\"pods\":[{pod},{}]}}", pod.replace("\"u\"", "\"v\""));
        assert!(matches!(parse(&shared, path), Err(Error::Shared { .. })));
    }
}
