//! The CA's signing material in a Secret, which all replicas of the controller share.
//!
//! The Secret has the form that cert-manager writes: `tls.crt`, `tls.key`, `ca.crt`, and `extra-roots.pem` if there are more
//! roots. Where there is none, a root is made: of several controllers that find none, the one whose creation the API server
//! accepts decides, and the others take what it made. Nothing here ever changes or deletes a Secret that is there.
//!
//! What it says is put into a private folder, as kubelet does with a mounted Secret: a new folder with all files, and a link
//! that is moved to it. So the CA reads one set or the other, and follows it as it follows any folder. A Secret that cannot
//! be used leaves the last good one in force.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::time::sleep;
use zeroize::Zeroizing;

use super::Pauses;
use super::call::{Api, MANAGED_BY, MANAGER, Resource, Trouble};
use crate::ca::files;
use crate::ca::material::{self, CERTIFICATE, EXTRA_ROOTS, KEY, Material, ROOTS};
use crate::object::Name;

const SECRETS: Resource = Resource::new("", "secrets");
/// How often it is looked at. Roots change over months, and both the old and the new one are trusted meanwhile.
const LOOK: Duration = Duration::from_secs(10);

const LINK: &str = "..data";
const FILES: [&str; 4] = [CERTIFICATE, KEY, ROOTS, EXTRA_ROOTS];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the folder for the CA's signing material {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
}

/// A Secret, and the folder that says the same.
pub struct SigningSecret {
    api: Api,
    at: Name,
    folder: PathBuf,
    look: Duration,
    /// What the folder says.
    held: Option<Set>,
    /// The last trouble, while it lasts: said once.
    trouble: Option<String>,
}

/// The files of a set that there are.
#[derive(PartialEq, Eq)]
struct Set(Vec<(&'static str, Zeroizing<Vec<u8>>)>);

#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{0}")]
    Trouble(#[from] Trouble),
    #[error("{0}")]
    Material(#[from] material::Error),
    #[error("its key {0} is not base64")]
    Encoding(&'static str),
    #[error("{0}")]
    Folder(#[from] Error),
}

impl SigningSecret {
    /// The folder is made, for this process alone.
    pub fn new(api: Api, at: Name, folder: PathBuf) -> Result<Self, Error> {
        let failed = |source| Error::Folder { path: folder.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
        fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).map_err(failed)?;
        // What a life before this one left: it is written anew before anybody reads it.
        for entry in fs::read_dir(&folder).map_err(failed)?.filter_map(Result::ok) {
            if entry.file_name().as_encoded_bytes().starts_with(b"..") && entry.path().is_dir() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(Self { api, at, folder, look: LOOK, held: None, trouble: None })
    }

    /// Waits until the folder holds a usable set, which is made if the Secret is not there.
    pub async fn complete(&mut self) {
        let mut pauses = Pauses::default();
        loop {
            match self.take(true).await {
                Ok(()) => return self.is_well(),
                Err(error) => self.complain(&error, "there is nothing to sign with yet"),
            }
            sleep(pauses.next()).await;
        }
    }

    /// Follows the Secret, for ever.
    pub async fn follow(mut self) {
        let mut pauses = Pauses::default();
        loop {
            sleep(self.look.mul_f64(rand::random_range(0.8..=1.0))).await;
            while let Err(error) = self.take(false).await {
                self.complain(&error, "the last good signing material stays in use");
                sleep(pauses.next()).await;
            }
            self.is_well();
            pauses = Pauses::default();
        }
    }

    async fn take(&mut self, may_make: bool) -> Result<(), Unusable> {
        let secret = match self.api.get(SECRETS, &self.at).await {
            Err(Trouble::Absent(_)) if may_make => self.make().await?,
            secret => secret?,
        };
        let set = Set::of(secret)?;
        if self.held.as_ref() == Some(&set) {
            return Ok(());
        }
        self.put(&set)?;
        tracing::info!(secret = %self.at, "signing material taken from the Secret");
        self.held = Some(set);
        Ok(())
    }

    async fn make(&self) -> Result<Value, Unusable> {
        let (root, key) = material::new_root()?;
        let encoded = |text: &str| BASE64_STANDARD.encode(text);
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {
                "name": &*self.at.name, "namespace": &*self.at.namespace, "labels": {MANAGED_BY: MANAGER},
            },
            "data": {CERTIFICATE: encoded(&root), KEY: encoded(&key), ROOTS: encoded(&root)},
        });
        match self.api.create(SECRETS, &self.at.namespace, &secret).await {
            Ok(made) => {
                tracing::info!(secret = %self.at, "a new root was made");
                Ok(made)
            }
            // Another one was faster: what it made counts.
            Err(Trouble::Conflict(_)) => Ok(self.api.get(SECRETS, &self.at).await?),
            Err(trouble) => Err(trouble.into()),
        }
    }

    /// Only a set that can sign gets there.
    fn put(&self, set: &Set) -> Result<(), Unusable> {
        let failed = |source| Error::Folder { path: self.folder.clone(), source };
        let before = fs::read_link(self.folder.join(LINK)).ok();
        let name = format!("..{:016x}", rand::random::<u64>());
        let new = self.folder.join(&name);
        DirBuilder::new().mode(0o700).create(&new).map_err(failed)?;
        let written = set.write(&new).map_err(failed).map_err(Unusable::from);
        let tried = written.and_then(|()| Ok(Material::read(&new, SystemTime::now())?));
        if let Err(error) = tried {
            let _ = fs::remove_dir_all(&new);
            return Err(error);
        }
        self.link(&name).map_err(failed)?;
        if let Some(before) = before {
            // What is left over holds no more than what the Secret held.
            let _ = fs::remove_dir_all(self.folder.join(before));
        }
        Ok(())
    }

    fn link(&self, name: &str) -> io::Result<()> {
        for file in FILES {
            let link = self.folder.join(file);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new(LINK).join(file), link)?;
            }
        }
        let unfinished = self.folder.join("..data.new");
        let _ = fs::remove_file(&unfinished);
        symlink(name, &unfinished)?;
        fs::rename(unfinished, self.folder.join(LINK))
    }

    fn complain(&mut self, error: &Unusable, consequence: &str) {
        let trouble = error.to_string();
        if self.trouble.as_ref() != Some(&trouble) {
            tracing::error!(secret = %self.at, %error, "the CA's Secret is unusable; {consequence}");
            self.trouble = Some(trouble);
        }
    }

    fn is_well(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!(secret = %self.at, "the CA's Secret is usable");
        }
    }
}

impl Set {
    fn of(mut secret: Value) -> Result<Self, Unusable> {
        let mut set = Vec::new();
        for file in FILES {
            let value = secret.get_mut("data").and_then(|data| data.get_mut(file));
            let Some(Value::String(text)) = value.map(Value::take) else { continue };
            let text = Zeroizing::new(text);
            let bytes = BASE64_STANDARD.decode(&*text).map_err(|_| Unusable::Encoding(file))?;
            // An empty one is as good as none.
            if !bytes.is_empty() {
                set.push((file, Zeroizing::new(bytes)));
            }
        }
        Ok(Self(set))
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        self.0.iter().try_for_each(|(name, bytes)| files::write_atomically(&folder.join(name), bytes, 0o600))
    }
}

#[cfg(test)]
mod tests;
