//! Which certificates were issued and are not over: an identity can only be revoked if its serial numbers are known.
//!
//! One line is appended for each certificate before it leaves the CA, so a restart forgets none; what is over goes when
//! the file is written anew. The file is synced by whoever calls [`Ledger::tidy`], every few seconds: a power cut may cost
//! the lines of that time, a crash of the process none.
//!
//! Bounded: when the bound is met nothing is issued, because what cannot be remembered could not be revoked.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ztunnel_model::Identity;

use super::authority::{Issued, Serial};
use super::files;
use super::material::KeyId;

pub const FILE: &str = "issued.log";

const MOST: usize = 1_000_000;

/// The file is written anew when it has more than twice the lines that count, and at least so many.
const LEAST_SURPLUS: usize = 1000;

/// One certificate that is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) serial: Serial,
    pub(super) key_id: KeyId,
    /// In seconds of the epoch.
    pub(super) not_after: u64,
}

#[derive(Debug)]
pub(super) struct Ledger {
    issued: HashMap<Identity, Vec<Entry>>,
    count: usize,
    most: usize,
    file: Option<Log>,
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    lines: usize,
    unsynced: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the register of issued certificates {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the register holds {0} unexpired certificates, which is its bound; shorten their lifetime")]
    Full(usize),
}

impl Ledger {
    /// In memory alone.
    pub(super) fn ephemeral() -> Self {
        Self { issued: HashMap::new(), count: 0, most: MOST, file: None }
    }

    /// What the file of a folder says, without what is over. A line that is not whole is what a power cut leaves.
    pub(super) fn open(folder: &Path, now: SystemTime) -> Result<Self, Error> {
        let path = folder.join(FILE);
        let failed = |source| Error::File { path: path.clone(), source };
        let mut ledger = Self::ephemeral();
        let text = files::read(&path).map_err(failed)?.unwrap_or_default();
        let mut unreadable = 0;
        for line in text.lines() {
            match parse(line) {
                Some((_, entry)) if entry.not_after < seconds(now) => {}
                Some((identity, entry)) => ledger.insert(identity, entry),
                None => unreadable += 1,
            }
        }
        if unreadable > 0 {
            tracing::warn!(path = %path.display(), unreadable, "lines of the register are not readable and left out");
        }
        ledger.file = Some(ledger.write_anew(path)?);
        Ok(ledger)
    }

    pub(super) fn record(&mut self, identity: &Identity, issued: &Issued) -> Result<(), Error> {
        if self.is_full() {
            return Err(Error::Full(self.most));
        }
        let Issued { serial, key_id, not_after, .. } = *issued;
        let entry = Entry { serial, key_id, not_after: seconds(not_after) };
        if let Some(log) = &mut self.file {
            let failed = |source| Error::File { path: log.path.clone(), source };
            log.file.write_all(line(identity, &entry).as_bytes()).map_err(failed)?;
            log.lines += 1;
            log.unsynced = true;
        }
        self.insert(identity.clone(), entry);
        Ok(())
    }

    /// The unexpired certificates of an identity.
    pub(super) fn of(&self, identity: &Identity) -> &[Entry] {
        self.issued.get(identity).map_or(&[], Vec::as_slice)
    }

    /// Forgets what is over, and makes sure that the disk has what is not.
    pub(super) fn tidy(&mut self, now: SystemTime) -> Result<(), Error> {
        let now = seconds(now);
        let mut count = 0;
        self.issued.retain(|_, entries| {
            entries.retain(|entry| entry.not_after >= now);
            count += entries.len();
            !entries.is_empty()
        });
        self.count = count;
        let Some(log) = &mut self.file else { return Ok(()) };
        if log.lines > 2 * count + LEAST_SURPLUS {
            let path = log.path.clone();
            self.file = Some(self.write_anew(path)?);
        } else if std::mem::take(&mut log.unsynced) {
            log.file.sync_data().map_err(|source| Error::File { path: log.path.clone(), source })?;
        }
        Ok(())
    }

    fn insert(&mut self, identity: Identity, entry: Entry) {
        self.issued.entry(identity).or_default().push(entry);
        self.count += 1;
    }

    fn write_anew(&self, path: PathBuf) -> Result<Log, Error> {
        let mut text = String::new();
        for (identity, entries) in &self.issued {
            for entry in entries {
                text.push_str(&line(identity, entry));
            }
        }
        let written = files::write_atomically(&path, text.as_bytes(), 0o600)
            .and_then(|()| OpenOptions::new().append(true).open(&path));
        match written {
            Ok(file) => Ok(Log { path, file, lines: self.count, unsynced: false }),
            Err(source) => Err(Error::File { path, source }),
        }
    }
}

/// Counts the entries of everybody, for a look from outside.
impl Ledger {
    pub(super) fn is_full(&self) -> bool {
        self.count >= self.most
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn line(identity: &Identity, entry: &Entry) -> String {
    let Entry { serial, key_id, not_after } = entry;
    format!("{} {key_id} {not_after} {identity}\n", hex(serial))
}

fn parse(line: &str) -> Option<(Identity, Entry)> {
    let mut words = line.split(' ');
    let serial = u128::from_str_radix(words.next().filter(|text| text.len() == 32)?, 16).ok()?.to_be_bytes();
    let key_id = KeyId::parse(words.next()?)?;
    let not_after = words.next()?.parse().ok()?;
    let identity = words.next()?.parse().ok()?;
    words.next().is_none().then_some((identity, Entry { serial, key_id, not_after }))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
    const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ledger-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn start() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn issued(serial: u8, lifetime_s: u64) -> Issued {
        Issued {
            chain: Vec::new(),
            serial: [serial; 16],
            key_id: KeyId::parse("00000000000000ff").unwrap(),
            not_after: start() + Duration::from_secs(lifetime_s),
        }
    }

    fn serials(ledger: &Ledger, identity: &str) -> Vec<u8> {
        ledger.of(&identity.parse().unwrap()).iter().map(|entry| entry.serial[0]).collect()
    }

    #[test]
    fn a_restart_forgets_what_is_over_and_nothing_else() {
        let folder = Folder::new("restart");
        let mut ledger = Ledger::open(&folder.0, start()).unwrap();
        ledger.record(&CART.parse().unwrap(), &issued(1, 10)).unwrap();
        ledger.record(&CART.parse().unwrap(), &issued(2, 100)).unwrap();
        ledger.record(&BANK.parse().unwrap(), &issued(3, 100)).unwrap();
        drop(ledger);
        let path = folder.0.join(FILE);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"0102 torn").unwrap();
        let mut again = Ledger::open(&folder.0, start() + Duration::from_secs(50)).unwrap();
        assert_eq!((serials(&again, CART), serials(&again, BANK)), (vec![2], vec![3]));
        again.record(&BANK.parse().unwrap(), &issued(4, 100)).unwrap();
        drop(again);
        let again = Ledger::open(&folder.0, start()).unwrap();
        assert_eq!((serials(&again, CART), serials(&again, BANK)), (vec![2], vec![3, 4]));
    }

    #[test]
    fn what_is_over_makes_room_in_memory_and_on_disk() {
        let folder = Folder::new("room");
        let mut ledger = Ledger::open(&folder.0, start()).unwrap();
        ledger.most = 1500;
        for _ in 0..1500 {
            ledger.record(&CART.parse().unwrap(), &issued(1, 10)).unwrap();
        }
        let full = ledger.record(&CART.parse().unwrap(), &issued(2, 100)).unwrap_err();
        assert!(matches!(full, Error::Full(1500)), "{full}");
        ledger.tidy(start() + Duration::from_secs(10)).unwrap();
        assert_eq!(ledger.len(), 1500, "good to the last second");
        ledger.tidy(start() + Duration::from_secs(11)).unwrap();
        assert_eq!(ledger.len(), 0);
        ledger.record(&CART.parse().unwrap(), &issued(2, 100)).unwrap();
        let lines = std::fs::read_to_string(folder.0.join(FILE)).unwrap().lines().count();
        assert_eq!(lines, 1);
    }
}
