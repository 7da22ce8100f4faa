//! The house rules that a compiler does not check: which crate may depend on which, and that imports inside the proxy
//! go down only.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Layers of `ztunnel/src`, highest first. Modules on one level do not import each other.
const LEVELS: &[&[&str]] = &[
    &["app"],
    &["admin", "pod"],
    &["proxy"],
    &["hbone", "route", "policy"],
    &["identity", "state"],
    &["tls", "relay"],
    &["net"],
    &["io"],
    &["telemetry", "config", "shutdown"],
];

/// Local crates that each crate may depend on, outside its tests.
const CRATES: &[(&str, &[&str])] = &[
    ("ztunnel/model", &[]),
    ("reflector", &[]),
    ("redirect", &["reflector"]),
    ("xds-client", &[]),
    ("control-plane", &["ztunnel-model", "xds-client", "reflector"]),
    ("ztunnel", &["ztunnel-model", "redirect", "xds-client"]),
    ("ztunnel/lab", &["ztunnel-model", "ztunnel", "redirect", "control-plane", "reflector"]),
    ("ztunnel/ctl", &["ztunnel-lab", "reflector"]),
    ("benches", &["ztunnel-model", "ztunnel", "control-plane", "ztunnel-lab"]),
    ("perf", &["ztunnel-lab"]),
];

/// Third-party crates and the only places of the proxy that may name them.
const CONFINED: &[(&str, &[&str])] = &[
    ("rustls", &["tls"]),
    ("tokio_rustls", &["tls"]),
    ("webpki", &["tls"]),
    ("h2", &["hbone"]),
    // Signals to the two processes that it starts.
    ("nix", &["net", "io", "app/alone.rs"]),
    ("rustix", &["net", "io"]),
    ("socket2", &["net", "io"]),
];

/// Where sources lie.
const FOLDERS: [&str; 7] =
    ["ztunnel", "redirect", "reflector", "xds-client", "control-plane", "benches", "perf"];

const LONGEST_FILE: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a folder entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

/// The code of a file without its comments and its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let text =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut pieces = text.split("#[cfg(test)]");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |code, piece| code + after_item(piece))
}

/// What follows the item at the start of a text: formatted code ends an item by the first line that is no deeper than
/// its own and ends in `}` or `;`.
fn after_item(text: &str) -> &str {
    let text = text.trim_start_matches('\n');
    let depth = |line: &str| line.len() - line.trim_start().len();
    let own = depth(text);
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        end += line.len();
        let last = line.trim_end();
        if depth(line) <= own && (last.ends_with('}') || last.ends_with(';')) {
            break;
        }
    }
    &text[end..]
}

/// The top-level modules that a file names: by `crate::`, or by as many `super::` as lead out of its own.
fn named_modules(inside: &Path, code: &str) -> Vec<String> {
    let depth = inside.components().count() - usize::from(inside.ends_with("mod.rs"));
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let by_crate = code.split("crate::").skip(1).map(word);
    let out = "super::".repeat(depth);
    by_crate.chain(code.split(out.as_str()).skip(1).map(word)).collect()
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs")
}

#[test]
fn imports_in_the_proxy_go_down_only() {
    let folder = root().join("ztunnel/src");
    let level: BTreeMap<&str, usize> = LEVELS
        .iter()
        .enumerate()
        .flat_map(|(level, names)| names.iter().map(move |name| (*name, level)))
        .collect();
    let mut wrong = Vec::new();
    for path in sources(&folder).into_iter().filter(|path| !is_test(path)) {
        let inside = path.strip_prefix(&folder).expect("found below it").to_owned();
        let first =
            inside.components().next().expect("a file has a name").as_os_str().to_string_lossy().into_owned();
        let module = first.trim_end_matches(".rs").to_owned();
        if module == "main" || module == "lib" {
            continue;
        }
        let own = *level.get(module.as_str()).unwrap_or_else(|| panic!("{module} has no level in this test"));
        for target in named_modules(&inside, &code(&path)) {
            match level.get(target.as_str()) {
                Some(_) if target == module => {}
                Some(&below) if below > own => {}
                Some(_) => wrong.push(format!("{} imports crate::{target}", inside.display())),
                None => {
                    wrong.push(format!("{} imports crate::{target}, which has no level", inside.display()))
                }
            }
        }
    }
    assert!(wrong.is_empty(), "imports must go down:\n{}", wrong.join("\n"));
}

#[test]
fn crates_depend_on_what_they_may() {
    let local = [
        "ztunnel-model",
        "ztunnel",
        "redirect",
        "reflector",
        "xds-client",
        "control-plane",
        "ztunnel-lab",
        "ztunnelctl",
        "benches",
        "perf",
    ];
    for (folder, allowed) in CRATES {
        let manifest = root().join(folder).join("Cargo.toml");
        let text =
            fs::read_to_string(&manifest).unwrap_or_else(|error| panic!("{}: {error}", manifest.display()));
        let dependencies = text.split("[dev-dependencies]").next().unwrap_or_default();
        let named = dependencies.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
        for name in named.filter(|name| local.contains(name)) {
            assert!(allowed.contains(&name), "{folder} must not depend on {name}");
        }
    }
}

/// The only places that may name the crate `kube`; everything else knows objects of the API by what became of them.
const KUBE: &[&str] = &["reflector/src", "redirect/src/source/kube", "control-plane/src/source/kube"];

#[test]
fn the_kubernetes_api_is_asked_in_its_rooms_only() {
    let mut wrong = Vec::new();
    for folder in FOLDERS {
        for path in sources(&root().join(folder)).into_iter().filter(|path| !is_test(path)) {
            let inside = path.strip_prefix(root()).expect("found below it");
            let text = code(&path);
            let named = ["kube", "k8s_openapi"].iter().any(|library| names(&text, library));
            if named && !KUBE.iter().any(|room| inside.starts_with(room)) {
                wrong.push(inside.display().to_string());
            }
        }
    }
    assert!(wrong.is_empty(), "the crate kube is named in {}", wrong.join(", "));
}

/// Whether code names a library, as opposed to a module of the same name.
fn names(code: &str, library: &str) -> bool {
    code.match_indices(&format!("{library}::"))
        .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
}

#[test]
fn libraries_stay_in_their_rooms() {
    let folder = root().join("ztunnel/src");
    let mut wrong = Vec::new();
    for path in sources(&folder).into_iter().filter(|path| !is_test(path)) {
        let inside = path.strip_prefix(&folder).expect("found below it").to_string_lossy().into_owned();
        let text = code(&path);
        for (library, rooms) in CONFINED {
            if names(&text, library) && !rooms.iter().any(|room| inside.starts_with(room)) {
                wrong.push(format!("{inside} names {library}"));
            }
        }
        if text.contains("env::var") && inside != "config/raw.rs" {
            wrong.push(format!("{inside} reads the environment"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_readable() {
    let mut wrong = Vec::new();
    for path in FOLDERS.iter().flat_map(|folder| sources(&root().join(folder))) {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines = text.lines().count();
        if lines > LONGEST_FILE {
            wrong.push(format!("{} has {lines} lines", path.display()));
        }
        let name = path.file_name().unwrap_or_default();
        if (name == "mod.rs" || name == "lib.rs") && !text.starts_with("//!") {
            wrong.push(format!("{} does not open with //!", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
