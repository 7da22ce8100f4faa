//! The folder of network configurations: which of them counts, and how each gets and loses our entry.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Error;
use super::conflist::{self, Entry, Invalid};
use crate::cni::durable::{self, UNFINISHED};

/// How the name of a configuration ends that became a list; no runtime takes it for a configuration.
const ASIDE: &str = ".ztunnel-original";
/// More than runtimes read.
const LONGEST: u64 = 2 * 1024 * 1024;

/// Comes before all that other CNIs call their files.
const OWN: &str = "00-00-ztunnel.conflist";

/// The names of all configurations but the own list, in the order in which runtimes (libcni) take them.
pub(super) fn others(folder: &Path) -> Result<Vec<OsString>, Error> {
    let wanted = |name: &OsStr| name != OWN && matches!(ending(name), Some(b"conf" | b"conflist" | b"json"));
    let mut names = files(folder)?;
    names.retain(|name| wanted(name));
    names.sort_unstable();
    Ok(names)
}

/// Sees to the entry in the configuration that counts. A file that somebody changes at the same moment is left to the
/// next look, which that change brings about.
pub(super) fn add(folder: &Path, name: &OsStr, entry: &Entry) -> Result<(), Error> {
    let path = folder.join(name);
    let Some(text) = read(&path)? else { return Ok(()) };
    if ending(name) != Some(b"conflist") {
        return convert(folder, name, &text, entry);
    }
    let entry = Entry { converted_from: conflist::converted_from(&text), ..entry.clone() };
    if let Some(with) = conflist::with_entry(&text, &entry).map_err(invalid(&path))?
        && replace(&path, &text, &with)?
    {
        tracing::info!(path = %path.display(), "CNI configuration has the plugin's entry");
    }
    Ok(())
}

/// Makes the own list of another configuration, and says whether that may be.
pub(super) fn copy(folder: &Path, name: &OsStr, entry: &Entry) -> Result<bool, Error> {
    let path = folder.join(name);
    if name <= OsStr::new(OWN) {
        return Ok(false);
    }
    // It has gone meanwhile, which the next look finds.
    let Some(text) = read(&path)? else { return Ok(true) };
    let list = match ending(name) {
        Some(b"conflist") => {
            conflist::with_entry(&text, entry).map(|with| with.unwrap_or_else(|| text.clone()))
        }
        _ => conflist::converted(&text, entry),
    };
    let list = list.map_err(invalid(&path))?;
    if conflist::has(&list, |kind| kind.starts_with("multus")) {
        return Ok(false);
    }
    let own = folder.join(OWN);
    if read(&own)?.as_deref() != Some(&list) {
        durable::write(&own, list.as_bytes(), 0o600).map_err(fail(&own))?;
        tracing::info!(path = %own.display(), of = %path.display(), "CNI configuration copied, with the plugin's entry");
    }
    Ok(true)
}

pub(super) fn remove_own(folder: &Path) -> Result<Option<String>, Error> {
    let own = folder.join(OWN);
    let there = exists(&own)?;
    if there {
        remove(&own)?;
    }
    Ok(there.then(|| format!("removed {}", own.display())))
}

/// Sees to it that a configuration has no entry of ours, and says what was done.
pub(super) fn take_out(folder: &Path, name: &OsStr) -> Result<Option<String>, Error> {
    let path = folder.join(name);
    // What another CNI left invalid cannot be told apart from what has no entry.
    let Ok(Some(text)) = read(&path) else { return Ok(None) };
    let Ok(Some(without)) = conflist::without_entry(&text) else { return Ok(None) };
    let done = match conflist::converted_from(&text).filter(|name| is_plain(name)) {
        Some(single) if give_back(folder, &single)? => {
            remove(&path)?;
            format!("restored {}", folder.join(single).display())
        }
        _ if replace(&path, &text, &without)? => format!("took the entry out of {}", path.display()),
        _ => return Ok(None),
    };
    Ok(Some(done))
}

/// Takes every entry out and brings back what was kept aside.
pub(super) fn restore(folder: &Path) -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    for name in others(folder)? {
        done.extend(take_out(folder, &name)?);
    }
    done.extend(remove_own(folder)?);
    // Those whose list somebody removed.
    for name in files(folder)? {
        if let Some(single) = name.to_str().and_then(|name| name.strip_suffix(ASIDE))
            && give_back(folder, single)?
        {
            done.push(format!("restored {}", folder.join(single).display()));
        }
    }
    Ok(done)
}

/// What a power cut left.
pub(super) fn remove_unfinished(folder: &Path) -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    for name in files(folder)? {
        if name.as_bytes().ends_with(UNFINISHED.as_bytes()) {
            let path = folder.join(&name);
            remove(&path)?;
            done.push(format!("removed {}", path.display()));
        }
    }
    Ok(done)
}

/// A single configuration becomes a list. Until it is moved aside, it counts as before.
fn convert(folder: &Path, name: &OsStr, text: &str, entry: &Entry) -> Result<(), Error> {
    let single = folder.join(name);
    let unsound = || io::Error::new(io::ErrorKind::InvalidData, "its name is not UTF-8");
    let name = name.to_str().ok_or_else(unsound).map_err(fail(&single))?;
    let entry = Entry { converted_from: Some(name.to_owned()), ..entry.clone() };
    let list_text = conflist::converted(text, &entry).map_err(invalid(&single))?;
    let list = free_list(folder, name)?;
    durable::write(&list, list_text.as_bytes(), 0o600).map_err(fail(&list))?;
    let aside = folder.join(format!("{name}{ASIDE}"));
    fs::rename(&single, &aside).map_err(fail(&single))?;
    durable::sync_folder_of(&single).map_err(fail(folder))?;
    tracing::info!(path = %list.display(), aside = %aside.display(), "CNI configuration became a list with the plugin's entry");
    // Its owner may have written it since it was read; then it is converted again.
    if read(&aside)?.as_deref() != Some(text) && !exists(&single)? {
        fs::rename(&aside, &single).map_err(fail(&single))?;
    }
    Ok(())
}

/// The file that a single configuration becomes: in its place of the order, and nobody else's.
fn free_list(folder: &Path, name: &str) -> Result<PathBuf, Error> {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    for list in [format!("{stem}.conflist"), format!("{name}.conflist")] {
        let list = folder.join(list);
        let own = || {
            read(&list).is_ok_and(|text| {
                text.and_then(|text| conflist::converted_from(&text)).as_deref() == Some(name)
            })
        };
        if !exists(&list)? || own() {
            return Ok(list);
        }
    }
    let path = folder.join(format!("{name}.conflist"));
    Err(Error::Occupied { path, single: folder.join(name) })
}

/// Whether the single configuration is there again. One that its owner has written meanwhile is the newer.
fn give_back(folder: &Path, single: &str) -> Result<bool, Error> {
    let (aside, single) = (folder.join(format!("{single}{ASIDE}")), folder.join(single));
    match (exists(&aside)?, exists(&single)?) {
        (true, true) => remove(&aside)?,
        (true, false) => {
            fs::rename(&aside, &single).map_err(fail(&aside))?;
            durable::sync_folder_of(&single).map_err(fail(folder))?;
        }
        (false, there) => return Ok(there),
    }
    Ok(true)
}

/// None if it is gone.
fn read(path: &Path) -> Result<Option<String>, Error> {
    let read = || {
        let mut text = String::new();
        fs::File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    match read() {
        Ok(text) if text.len() as u64 > LONGEST => {
            let error = format!("more than {LONGEST} bytes, which runtimes refuse");
            Err(fail(path)(io::Error::new(io::ErrorKind::InvalidData, error)))
        }
        Ok(text) => Ok(Some(text)),
        Err(error) => absent(error).map_err(fail(path)).map(|()| None),
    }
}

fn replace(path: &Path, old: &str, new: &str) -> Result<bool, Error> {
    match durable::replace(path, old.as_bytes(), new.as_bytes()) {
        Ok(replaced) => Ok(replaced),
        Err(error) => absent(error).map_err(fail(path)).map(|()| false),
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).and_then(|()| durable::sync_folder_of(path)).or_else(absent).map_err(fail(path))
}

/// Another has removed it meanwhile, or the folder does not exist yet.
fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(fail(path))
}

fn files(folder: &Path) -> Result<Vec<OsString>, Error> {
    let list = || {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                names.push(entry.file_name());
            }
        }
        Ok(names)
    };
    list().or_else(|error| absent(error).map(|()| Vec::new())).map_err(fail(folder))
}

/// What follows the last dot, where libcni looks; a name may be nothing else.
fn ending(name: &OsStr) -> Option<&[u8]> {
    let name = name.as_bytes();
    name.iter().rposition(|byte| *byte == b'.').map(|dot| &name[dot + 1..])
}

/// Names a file of the same folder.
fn is_plain(name: &str) -> bool {
    !name.contains('/') && matches!(ending(OsStr::new(name)), Some(b"conf" | b"json"))
}

fn fail(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

fn invalid(path: &Path) -> impl FnOnce(Invalid) -> Error {
    let path = path.to_owned();
    move |source| Error::Invalid { path, source }
}
