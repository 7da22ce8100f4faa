use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;

use serde_json::Value;

use super::*;

/// A node's folders.
struct Node {
    root: PathBuf,
    installer: Installer,
}

const ONE: &str = "{ \"cniVersion\": \"1.0.0\", \"name\": \"one\", \"plugins\": [ {\"type\": \"ptp\"}, {\"type\": \"portmap\"} ] }";
const SINGLE: &str = "{\n \"type\": \"bridge\", \"cniVersion\": \"0.3.1\", \"name\": \"old\" }\n";

impl Node {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("install-{}-{name}", std::process::id()));
        for folder in ["bin", "net.d", "run"] {
            fs::create_dir_all(root.join(folder)).expect("a temporary folder");
        }
        fs::write(root.join("ztunnel-cni"), "the plugin").expect("written");
        let config = Config {
            bin_dir: root.join("bin"),
            conf_dir: root.join("net.d"),
            plugin: root.join("ztunnel-cni"),
            socket: root.join("run/cni.sock"),
            enrolled: root.join("run/enrolled.json"),
            exempt: vec!["kube-system".to_owned()],
            own_list: false,
        };
        Self { root, installer: Installer::new(config) }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.installer.config.conf_dir.join(name), text).expect("written");
    }

    fn look(&mut self) {
        self.put();
        // A second look finds nothing to do.
        let before = self.files();
        self.put();
        assert_eq!(before, self.files());
    }

    /// That there is no configuration yet is nothing in the way.
    fn put(&mut self) {
        match self.installer.put() {
            Ok(()) | Err(Error::NoConfiguration { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn files(&self) -> BTreeMap<OsString, String> {
        let entries = fs::read_dir(&self.installer.config.conf_dir).expect("the folder");
        entries
            .map(|entry| {
                let entry = entry.expect("an entry");
                (entry.file_name(), fs::read_to_string(entry.path()).expect("text"))
            })
            .collect()
    }

    /// The plugins of a file, as a runtime reads them.
    fn types(&self, name: &str) -> Vec<String> {
        let text = fs::read(self.installer.config.conf_dir.join(name)).expect(name);
        let value: Value = serde_json::from_slice(&text).expect("JSON");
        let plugins = value["plugins"].as_array().expect("a list");
        plugins.iter().map(|plugin| plugin["type"].as_str().expect("a type").to_owned()).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[test]
fn only_the_first_in_the_order_of_libcni_has_the_entry() {
    let mut node = Node::new("order");
    node.look();
    assert!(node.files().is_empty());
    // None of these is a configuration, and a folder neither.
    node.write("00-first.conflist.bak", ONE);
    node.write("01-note", ONE);
    fs::create_dir(node.installer.config.conf_dir.join("02-folder.conflist")).expect("made");
    fs::remove_dir(node.installer.config.conf_dir.join("02-folder.conflist")).expect("removed");
    let others = node.files();
    node.write("20-b.conflist", ONE);
    node.write("30-c.conf", SINGLE);
    node.look();
    assert_eq!(node.types("20-b.conflist"), ["ptp", "portmap", "ztunnel-cni"]);
    assert_eq!(node.files()[&OsString::from("30-c.conf")], SINGLE);
    // A capital comes before, a dot too.
    for smaller in ["10-a.conflist", "10-Z.conflist", ".hidden.conflist"] {
        node.write(smaller, ONE);
        node.look();
        assert_eq!(node.types(smaller), ["ptp", "portmap", "ztunnel-cni"]);
        assert_eq!(node.types("20-b.conflist").len(), 2, "{smaller}");
        let with: Vec<_> =
            node.files().into_values().filter(|text| text.contains("\"ztunnel-cni\"")).collect();
        assert_eq!(with.len(), 1, "{smaller}");
    }
    for name in [".hidden.conflist", "10-Z.conflist", "10-a.conflist"] {
        fs::remove_file(node.installer.config.conf_dir.join(name)).expect("removed");
        node.look();
    }
    assert_eq!(node.types("20-b.conflist").len(), 3);
    uninstall(&node.installer.config).expect("removed");
    let mut expected = others;
    expected.insert("20-b.conflist".into(), ONE.to_owned());
    expected.insert("30-c.conf".into(), SINGLE.to_owned());
    assert_eq!(node.files(), expected);
}

#[test]
fn an_own_list_follows_the_first_of_the_others_and_leaves_them_as_they_are() {
    const OWN: &str = "00-00-ztunnel.conflist";
    let mut node = Node::new("own");
    // As an earlier version left it.
    node.write("20-b.conflist", ONE);
    node.look();
    assert_eq!(node.types("20-b.conflist").len(), 3);
    node.installer.config.own_list = true;
    node.look();
    assert_eq!(node.types(OWN), ["ptp", "portmap", "ztunnel-cni"]);
    assert_eq!(node.files()[&OsString::from("20-b.conflist")], ONE);
    // Rewritten, and another one first, which is single.
    node.write("20-b.conflist", &ONE.replace("portmap", "tuning"));
    node.look();
    assert_eq!(node.types(OWN), ["ptp", "tuning", "ztunnel-cni"]);
    node.write("10-a.conf", SINGLE);
    node.look();
    assert_eq!(node.types(OWN), ["bridge", "ztunnel-cni"]);
    assert_eq!(node.files()[&OsString::from("10-a.conf")], SINGLE);
    // One that is not valid leaves the copy of what was.
    node.write("10-a.conf", "{");
    assert!(matches!(node.installer.put(), Err(Error::Invalid { .. })));
    assert_eq!(node.types(OWN), ["bridge", "ztunnel-cni"]);
    // Multus would take the copy for the file to make its own of.
    node.write("10-a.conf", &SINGLE.replace("bridge", "multus-shim"));
    node.look();
    assert!(!node.files().contains_key(&OsString::from(OWN)));
    assert_eq!(node.types("10-a.conflist"), ["multus-shim", "ztunnel-cni"]);
    node.write("10-a.conflist", ONE);
    node.look();
    for name in ["10-a.conflist", "20-b.conflist"] {
        fs::remove_file(node.installer.config.conf_dir.join(name)).expect("there");
    }
    assert!(matches!(node.installer.put(), Err(Error::NoConfiguration { .. })));
    assert!(!node.files().contains_key(&OsString::from(OWN)), "a node without a network takes no pods");
    node.write("30-c.conflist", ONE);
    node.look();
    uninstall(&node.installer.config).expect("removed");
    assert!(
        node.files().keys().all(|name| name == "30-c.conflist" || name == "10-a.conf"),
        "{:?}",
        node.files()
    );
    assert_eq!(node.files()[&OsString::from("30-c.conflist")], ONE);
}

#[test]
fn a_single_configuration_is_kept_aside_and_restored() {
    let mut node = Node::new("single");
    node.write("10-x.conf", SINGLE);
    node.write("20-y.json", SINGLE);
    let before = node.files();
    node.look();
    assert_eq!(node.types("10-x.conflist"), ["bridge", "ztunnel-cni"]);
    let first = folder::others(&node.installer.config.conf_dir).expect("listed")[0].clone();
    assert_eq!(first, "10-x.conflist");
    // Its owner writes it anew.
    let newer = SINGLE.replace("old", "newer");
    node.write("10-x.conf", &newer);
    node.look();
    assert!(node.files()[&OsString::from("10-x.conflist")].contains("newer"));
    assert!(!node.files().contains_key(&OsString::from("10-x.conf")));
    // Another comes before: then the single one is as it was.
    node.write("05-a.conflist", ONE);
    node.look();
    assert_eq!(node.files()[&OsString::from("10-x.conf")], newer);
    assert_eq!(node.files().len(), 3, "{:?}", node.files());
    fs::remove_file(node.installer.config.conf_dir.join("05-a.conflist")).expect("removed");
    // A list of that name which is not ours stays.
    node.write("10-x.conflist", ONE);
    node.look();
    assert_eq!(node.types("10-x.conf.conflist"), ["bridge", "ztunnel-cni"]);
    fs::remove_file(node.installer.config.conf_dir.join("10-x.conflist")).expect("removed");
    uninstall(&node.installer.config).expect("removed");
    node.write("10-x.conf", SINGLE);
    assert_eq!(node.files(), before);
}

#[test]
fn every_step_of_a_conversion_may_be_the_last() {
    // (whether the list was written, whether the single one was moved, whether it was moved back)
    for cut in 0..4 {
        let mut node = Node::new(&format!("cut-{cut}"));
        node.write("10-x.conf", SINGLE);
        let before = node.files();
        node.look();
        let list = node.files()[&OsString::from("10-x.conflist")].clone();
        let folder = node.installer.config.conf_dir.clone();
        match cut {
            0 => fs::rename(folder.join("10-x.conf.ztunnel-original"), folder.join("10-x.conf"))
                .expect("moved"),
            1 => node.write("10-x.conf", SINGLE),
            2 => fs::remove_file(folder.join("10-x.conflist")).expect("removed"),
            _ => node.write(".10-x.conflist.ztunnel-new", &list[..20]),
        }
        if cut != 2 {
            node.look();
            assert_eq!(node.types("10-x.conflist"), ["bridge", "ztunnel-cni"], "{cut}");
        }
        uninstall(&node.installer.config).expect("removed");
        assert_eq!(node.files(), before, "{cut}");
    }
}

#[test]
fn what_is_invalid_is_named_and_left_alone() {
    let mut node = Node::new("invalid");
    node.write("20-b.conflist", ONE);
    for (name, text) in [
        ("10-a.conflist", "{\"name\": \"a\", \"plugins\": [{\"type\""),
        ("10-a.conflist", "\u{feff}{}"),
        ("10-a.conf", ONE),
    ] {
        node.write(name, text);
        let error = node.installer.put().expect_err("invalid").to_string();
        assert!(error.contains(name), "{error}");
        assert_eq!(node.files()[&OsString::from(name)], text);
        assert_eq!(node.files().len(), 2);
        fs::remove_file(node.installer.config.conf_dir.join(name)).expect("removed");
    }
    let long = ONE.replace("ptp\"}", &format!("ptp\", \"x\": \"{}\"}}", "x".repeat(2 << 20)));
    node.write("10-a.conflist", &long);
    assert!(node.installer.put().is_err());
    node.write("10-a.conflist", ONE);
    node.look();
    assert_eq!(node.types("10-a.conflist").len(), 3);
}

#[test]
fn the_binary_is_the_one_that_is_given() {
    use std::os::unix::fs::PermissionsExt;

    let mut node = Node::new("binary");
    let target = node.installer.config.bin_dir.join(PLUGIN);
    node.look();
    assert_eq!(fs::read_to_string(&target).expect("there"), "the plugin");
    assert_eq!(fs::metadata(&target).expect("there").permissions().mode() & 0o777, 0o755);
    let damages: [&dyn Fn(); 3] = [
        &|| fs::write(&target, "another").expect("written"),
        &|| fs::remove_file(&target).expect("removed"),
        &|| fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).expect("changed"),
    ];
    for damage in damages {
        damage();
        node.put();
        assert_eq!(fs::read_to_string(&target).expect("there"), "the plugin");
        assert_eq!(fs::metadata(&target).expect("there").permissions().mode() & 0o777, 0o755);
    }
    // Without it no entry: pods could not start.
    fs::remove_file(&node.installer.config.plugin).expect("removed");
    node.write("10-a.conflist", ONE);
    let error = node.installer.put().expect_err("no plugin").to_string();
    assert!(error.contains("ztunnel-cni"), "{error}");
    assert_eq!(node.types("10-a.conflist").len(), 2);
}

#[test]
fn uninstalling_waits_for_the_agents_end() {
    let mut node = Node::new("running");
    node.write("10-a.conflist", ONE);
    let before = node.files();
    node.look();
    fs::write(&node.installer.config.enrolled, "{}").expect("written");
    let lock = File::create(node.installer.config.socket.with_extension("lock")).expect("made");
    lock.lock().expect("locked");
    assert!(matches!(uninstall(&node.installer.config), Err(Error::Running { .. })));
    assert_eq!(node.types("10-a.conflist").len(), 3);
    drop(lock);
    let removed = uninstall(&node.installer.config).expect("removed");
    assert_eq!(removed.len(), 4, "{removed:?}");
    assert_eq!(node.files(), before);
    assert_eq!(fs::read_dir(&node.installer.config.bin_dir).expect("there").count(), 0);
    assert_eq!(fs::read_dir(node.root.join("run")).expect("there").count(), 0);
    assert_eq!(uninstall(&node.installer.config).expect("again"), Vec::<String>::new());
}
