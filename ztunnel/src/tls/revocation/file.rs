//! CRL_PATH: read at start and after every change of its folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};

use super::Revocations;

/// A change of a mounted volume comes as several events.
const SETTLE: Duration = Duration::from_millis(100);
/// A look without an event: for a folder that is not there yet, and for file systems that tell of nothing.
const LOOK: Duration = Duration::from_secs(5);
/// No sensible list is larger; a path that names something else must not fill the memory.
const MOST_BYTES: u64 = 64 << 20;

pub(super) async fn follow(revocations: Revocations, path: PathBuf) {
    let mut held = Held::default();
    let mut events = watch(&path);
    loop {
        held.look(&revocations, &path);
        match &mut events {
            Some(stream) => {
                if let Ok(Some(Err(_)) | None) = tokio::time::timeout(LOOK, stream.next()).await {
                    events = None;
                } else {
                    while let Ok(Some(Ok(_))) = tokio::time::timeout(SETTLE, stream.next()).await {}
                }
            }
            None => {
                tokio::time::sleep(LOOK).await;
                events = watch(&path);
            }
        }
    }
}

/// What the last look found.
#[derive(Default)]
struct Held {
    content: Option<Vec<u8>>,
    complaint: Option<String>,
}

impl Held {
    /// Applies the file if it changed. What cannot be used leaves the CRLs as they are, and is said once.
    fn look(&mut self, revocations: &Revocations, path: &Path) {
        let complaint = match read(path) {
            Ok(content) if self.content.as_ref() == Some(&content) => return,
            Ok(content) => {
                let taken = revocations.take_file(&content);
                self.content = Some(content);
                match taken {
                    Ok(crls) => {
                        tracing::info!(path = %path.display(), crls, "CRLs applied");
                        None
                    }
                    Err(error) => Some(error.to_string()),
                }
            }
            Err(error) => Some(error),
        };
        if complaint != self.complaint
            && let Some(error) = &complaint
        {
            let path = path.display();
            tracing::warn!(%path, error, "CRL_PATH cannot be used; what was revoked before stays revoked");
        }
        self.complaint = complaint;
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MOST_BYTES {
        return Err(format!("it holds {size} bytes, which no list of CRLs does"));
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

/// The folder rather than the file: it may be replaced, or be a link that is.
fn watch(path: &Path) -> Option<EventStream<Vec<u8>>> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let watch = || {
        let watch = Inotify::init()?;
        watch.watches().add(folder, WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE)?;
        watch.into_event_stream(vec![0; 4096])
    };
    watch().ok()
}
