//! The CA as it runs: signs, remembers what it signed, revokes, and follows its files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::sync::watch;
use ztunnel_model::Identity;

use super::authority::{self, Authority, Folders, Issued};
use super::counters::Counters;
use super::issue;
use super::ledger::{self, Ledger};
use super::material::{Expiry, Material};
use super::revocation::{self, CRL_FILE, Crl, Inherited, Revoked};

/// A change of files comes as several events: so long is waited for the next one.
const SETTLE: Duration = Duration::from_millis(100);
/// A look without an event: for what a watch cannot see (a network file system), for the ledger, and for the clock.
const LOOK: Duration = Duration::from_secs(5);
const CRL_AGE: Duration = Duration::from_secs(24 * 3600);

/// Where the CA finds and leaves what.
#[derive(Clone, Debug)]
pub struct Files {
    pub folders: Folders,
    /// The operator's list of what is revoked; need not exist.
    pub revoked: PathBuf,
}

pub struct Ca {
    authority: Authority,
    files: Option<Files>,
    records: Mutex<Records>,
    crl: watch::Sender<Arc<Crl>>,
    /// Counts the changes of signing material.
    changes: watch::Sender<u64>,
    counters: Counters,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Authority(#[from] authority::Error),
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    #[error(transparent)]
    Revocation(#[from] revocation::Error),
    #[error("the CRLs {}: {source}", path.display())]
    CrlFile { path: PathBuf, source: std::io::Error },
}

/// Why a request that is well-formed gets no certificate.
#[derive(Debug, thiserror::Error)]
pub enum NotCertified {
    #[error("identity {0} is revoked")]
    Revoked(Identity),
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    #[error(transparent)]
    Authority(#[from] authority::Error),
}

struct Records {
    ledger: Ledger,
    revoked: Revoked,
    inherited: Vec<Inherited>,
    crl_signed: SystemTime,
    /// What was wrong at the last look: said once, not at every look.
    complaints: [Option<String>; 3],
}

/// Which file a complaint is about.
#[derive(Clone, Copy)]
enum About {
    Material,
    Revocation,
    State,
}

impl Ca {
    /// Starts from files. At the start each of them must be usable; later a bad one leaves the last good one in force.
    pub fn open(files: Files) -> Result<Self, Error> {
        let now = SystemTime::now();
        let authority = Authority::open(files.folders.clone())?;
        let state = &files.folders.state;
        let ledger = Ledger::open(state, now)?;
        let revoked = Revoked::read(&files.revoked)?.unwrap_or_default();
        let path = state.join(CRL_FILE);
        let held = super::files::read(&path).map_err(|source| Error::CrlFile { path, source })?;
        let inherited = held.map(|text| revocation::inherit(&text, now)).unwrap_or_default();
        let ca = Self::assemble(authority, Some(files), Records::new(ledger, revoked, inherited));
        ca.sign_crls(&mut ca.records(), now)?;
        Ok(ca)
    }

    /// In memory alone.
    pub fn ephemeral() -> Result<Self, Error> {
        let records = Records::new(Ledger::ephemeral(), Revoked::default(), Vec::new());
        let ca = Self::assemble(Authority::ephemeral()?, None, records);
        ca.sign_crls(&mut ca.records(), SystemTime::now())?;
        Ok(ca)
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The CRLs of every issuing key, now and after each change. Also in the file `ca-crl.pem` of the state folder.
    pub fn crl(&self) -> watch::Receiver<Arc<Crl>> {
        self.crl.subscribe()
    }

    /// Changes whenever other material signs.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Certificates that were issued and are not over.
    pub fn unexpired(&self) -> usize {
        self.records().ledger.len()
    }

    /// When each intermediate and each root of the set in use is over.
    pub fn expiries(&self) -> Vec<Expiry> {
        self.authority.current().expiries.clone()
    }

    /// Why nothing can be signed now.
    pub fn cannot_sign(&self, now: SystemTime) -> Option<String> {
        if self.authority.current().not_after <= now {
            return Some("the signing material is over".to_owned());
        }
        let records = self.records();
        if records.ledger.is_full() {
            return Some("the register of issued certificates is full".to_owned());
        }
        records.complaints[About::State as usize].clone()
    }

    pub fn is_revoked(&self, identity: &Identity) -> bool {
        self.records().revoked.identities.contains(identity)
    }

    /// Certifies a verified request and remembers it.
    pub fn certify(
        &self,
        request: &issue::Request,
        validity: (SystemTime, SystemTime),
    ) -> Result<Issued, NotCertified> {
        let identity = &request.identity;
        if self.is_revoked(identity) {
            return Err(NotCertified::Revoked(identity.clone()));
        }
        let issued = issue::certify(&self.authority, request, validity)?;
        let mut records = self.records();
        // Revoked while it was signed: it must not slip past the CRL.
        if records.revoked.identities.contains(identity) {
            return Err(NotCertified::Revoked(identity.clone()));
        }
        records.ledger.record(identity, &issued)?;
        self.counters.count_issued();
        Ok(issued)
    }

    /// Looks at every file once and applies what changed.
    pub fn look(&self, now: SystemTime) {
        let reloaded = self.authority.reload().map_err(|error| error.to_string());
        let changed = matches!(reloaded, Ok(true));
        let mut records = self.records();
        self.complain(&mut records, About::Material, reloaded.err());
        if changed {
            self.counters.count_rotation();
            self.changes.send_modify(|count| *count += 1);
        }
        let mut sign = changed || now.duration_since(records.crl_signed).is_ok_and(|age| age > CRL_AGE);
        if let Some(files) = &self.files {
            let complaint = match Revoked::read(&files.revoked) {
                // Half of a replacement, or a lost mount, must not give back what was taken.
                Ok(None) if !records.revoked.is_empty() => Some(format!(
                    "{} is not there or says nothing; what was revoked stays so. Write `identities: []` to revoke nothing",
                    files.revoked.display()
                )),
                Ok(revoked) => {
                    let revoked = revoked.unwrap_or_default();
                    if revoked != records.revoked {
                        let (identities, serials) = (revoked.identities.len(), revoked.serials.len());
                        tracing::info!(identities, serials, "revocations changed");
                        records.revoked = revoked;
                        sign = true;
                    }
                    None
                }
                Err(error) => Some(error.to_string()),
            };
            self.complain(&mut records, About::Revocation, complaint);
        }
        let signed = if sign { self.sign_crls(&mut records, now) } else { Ok(()) };
        let kept = signed.and_then(|()| records.ledger.tidy(now).map_err(Error::from));
        self.complain(&mut records, About::State, kept.err().map(|error| error.to_string()));
    }

    /// Applies changes of the files for ever.
    pub async fn follow(&self) {
        let mut watch = match &self.files {
            Some(files) => watch_folders(&[&files.folders.material, folder_of(&files.revoked)]),
            None => return std::future::pending().await,
        };
        loop {
            match &mut watch {
                Some(events) => {
                    if let Ok(Some(Err(error))) = tokio::time::timeout(LOOK, events.next()).await {
                        tracing::warn!(%error, "watching the CA's files failed; they are looked at from time to time");
                        watch = None;
                    } else {
                        // The files of one change are written one after the other.
                        while let Ok(Some(Ok(_))) = tokio::time::timeout(SETTLE, events.next()).await {}
                    }
                }
                None => tokio::time::sleep(LOOK).await,
            }
            self.look(SystemTime::now());
        }
    }

    fn assemble(authority: Authority, files: Option<Files>, records: Records) -> Self {
        Self {
            authority,
            files,
            records: Mutex::new(records),
            crl: watch::Sender::new(Arc::default()),
            changes: watch::Sender::new(0),
            counters: Counters::default(),
        }
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sign_crls(&self, records: &mut Records, now: SystemTime) -> Result<(), Error> {
        let materials = self.authority.materials();
        let materials = materials.iter().map(|material| -> &Material { material });
        let crl = revocation::sign(&records.revoked, &records.ledger, materials, &records.inherited, now)?;
        records.crl_signed = now;
        if let Some(files) = &self.files {
            let path = files.folders.state.join(CRL_FILE);
            super::files::write_atomically(&path, crl.pem.as_bytes(), 0o644)
                .map_err(|source| Error::CrlFile { path, source })?;
        }
        tracing::info!(revoked = crl.revoked, "CRLs signed");
        self.crl.send_replace(Arc::new(crl));
        Ok(())
    }

    fn complain(&self, records: &mut Records, about: About, complaint: Option<String>) {
        let last = &mut records.complaints[about as usize];
        if let Some(error) = &complaint
            && complaint != *last
        {
            self.counters.count_unusable();
            match about {
                About::Material => {
                    tracing::error!(%error, "new signing material is unusable; the old one stays in use")
                }
                About::Revocation => {
                    tracing::error!(%error, "the revocation file is unusable; the last good one stays in force")
                }
                About::State => tracing::error!(%error, "the CA cannot keep its records"),
            }
        }
        *last = complaint;
    }
}

impl Records {
    fn new(ledger: Ledger, revoked: Revoked, inherited: Vec<Inherited>) -> Self {
        let complaints = [const { None }; 3];
        Self { ledger, revoked, inherited, crl_signed: SystemTime::UNIX_EPOCH, complaints }
    }
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Folders rather than files: a mounted secret changes by the swap of a link beside them.
fn watch_folders(folders: &[&Path]) -> Option<inotify::EventStream<Vec<u8>>> {
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
    let watch = || {
        let watch = Inotify::init()?;
        for folder in folders {
            watch.watches().add(folder, mask)?;
        }
        watch.into_event_stream(vec![0; 4096])
    };
    watch()
        .inspect_err(|error| {
            tracing::warn!(%error, "the CA's files cannot be watched; they are looked at from time to time")
        })
        .ok()
}

#[cfg(test)]
mod tests;
