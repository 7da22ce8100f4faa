//! A network configuration of another CNI with our entry at the end of its plugins. Works on text: whatever is not ours
//! stays as it is to the byte, so that taking the entry out gives back what was there.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::cni::plugin::VERSIONS;

/// The type of our entry, and the name of the plugin's file.
pub(super) const PLUGIN: &str = "ztunnel-cni";

/// Our entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub(super) r#type: String,
    pub(super) socket: String,
    pub(super) enrolled: String,
    pub(super) exempt: Vec<String>,
    /// The name of the single configuration that this list was made from, which is kept aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) converted_from: Option<String>,
}

/// Why a configuration is left alone.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    #[error("{0}")]
    Undecodable(#[from] serde_json::Error),
    #[error("\"plugins\" names no plugin besides ztunnel-cni")]
    NoPlugins,
    #[error("it has no \"type\" (a list must be in a file whose name ends in .conflist)")]
    NoType,
    #[error("it has no \"name\"")]
    NoName,
    #[error("none of its versions {0:?} is one of {VERSIONS:?}; a plugin cannot follow another in it")]
    Version(Vec<String>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    name: Option<String>,
    cni_version: Option<String>,
    #[serde(default)]
    cni_versions: Vec<String>,
    #[serde(borrow)]
    plugins: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Plugin {
    r#type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Single<'a> {
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    cni_version: Option<&'a RawValue>,
    r#type: Option<String>,
}

/// A plugin of a list, and where it stands in the text.
struct Place {
    start: usize,
    end: usize,
    ours: bool,
}

/// The text with our entry once, at the end; None if it is so already.
pub(super) fn with_entry(text: &str, entry: &Entry) -> Result<Option<String>, Invalid> {
    let list: List<'_> = serde_json::from_str(text)?;
    if list.name.is_none_or(|name| name.is_empty()) {
        return Err(Invalid::NoName);
    }
    let versions: Vec<String> = list.cni_version.into_iter().chain(list.cni_versions).collect();
    if !versions.iter().any(|version| VERSIONS.contains(&version.as_str())) {
        return Err(Invalid::Version(versions));
    }
    if let Some(last) = list.plugins.last()
        && serde_json::from_str::<Entry>(last.get()).is_ok_and(|found| found == *entry)
        && places(text)?.iter().filter(|place| place.ours).count() == 1
        && list.plugins.len() > 1
    {
        return Ok(None);
    }
    let bare = without_entry(text)?;
    let bare = bare.as_deref().unwrap_or(text);
    let places = places(bare)?;
    let last = places.last().filter(|last| !last.ours).ok_or(Invalid::NoPlugins)?;
    let before = &bare[..last.start];
    let space = &before[before.trim_end().len()..];
    let entry = serde_json::to_string(entry)?;
    Ok(Some(format!("{},{space}{entry}{}", &bare[..last.end], &bare[last.end..])))
}

/// The text without any entry of ours; None if it has none.
pub(super) fn without_entry(text: &str) -> Result<Option<String>, Invalid> {
    let mut result: Option<String> = None;
    loop {
        let text = result.as_deref().unwrap_or(text);
        let places = places(text)?;
        let Some(ours) = places.iter().position(|place| place.ours) else { return Ok(result) };
        let (start, end) = match (ours.checked_sub(1).map(|before| &places[before]), places.get(ours + 1)) {
            (Some(before), _) => (before.end, places[ours].end),
            (None, Some(after)) => (places[ours].start, after.start),
            (None, None) => (places[ours].start, places[ours].end),
        };
        result = Some(format!("{}{}", &text[..start], &text[end..]));
    }
}

/// Our entry in a text, if it is a list that has one. One of another version may lack what this one knows.
pub(super) fn converted_from(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Origin {
        converted_from: Option<String>,
    }
    let list: List<'_> = serde_json::from_str(text).ok()?;
    let ours = list.plugins.iter().find(|plugin| is_ours(plugin).unwrap_or(false))?;
    serde_json::from_str::<Origin>(ours.get()).ok()?.converted_from
}

/// Whether a list has a plugin of such a type.
pub(super) fn has(text: &str, wanted: impl Fn(&str) -> bool) -> bool {
    let list: Result<List<'_>, _> = serde_json::from_str(text);
    list.is_ok_and(|list| {
        let plugins =
            list.plugins.iter().filter_map(|plugin| serde_json::from_str::<Plugin>(plugin.get()).ok());
        plugins.filter_map(|plugin| plugin.r#type).any(|kind| wanted(&kind))
    })
}

/// A single configuration as a list with our entry.
pub(super) fn converted(text: &str, entry: &Entry) -> Result<String, Invalid> {
    let single: Single<'_> = serde_json::from_str(text)?;
    if single.r#type.is_none_or(|kind| kind.is_empty()) {
        return Err(Invalid::NoType);
    }
    let name = single.name.ok_or(Invalid::NoName)?;
    let version = single.cni_version.map_or("\"\"", RawValue::get);
    let plugin = text.trim();
    let list = format!(
        "{{\n  \"cniVersion\": {version},\n  \"name\": {name},\n  \"plugins\": [\n    {plugin}\n  ]\n}}\n"
    );
    with_entry(&list, entry)?.ok_or(Invalid::NoPlugins)
}

fn places(text: &str) -> Result<Vec<Place>, Invalid> {
    let list: List<'_> = serde_json::from_str(text)?;
    list.plugins
        .iter()
        .map(|plugin| {
            let ours = is_ours(plugin)?;
            // The values are borrowed from the text.
            let start = plugin.get().as_ptr().addr() - text.as_ptr().addr();
            Ok(Place { start, end: start + plugin.get().len(), ours })
        })
        .collect()
}

fn is_ours(plugin: &RawValue) -> Result<bool, Invalid> {
    let Plugin { r#type } = serde_json::from_str(plugin.get())?;
    match r#type.as_deref() {
        None | Some("") => Err(Invalid::NoType),
        Some(kind) => Ok(kind == PLUGIN),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn entry() -> Entry {
        Entry {
            r#type: PLUGIN.to_owned(),
            socket: "/run/cni.sock".to_owned(),
            enrolled: "/lib/enrolled.json".to_owned(),
            exempt: vec!["kube-system".to_owned()],
            converted_from: None,
        }
    }

    const LIST: &str = "{\n  \"name\": \"k8s\", \"zebra\": 1.50,\n\t\"cniVersion\": \"0.3.1\",\n  \"plugins\": [\n    \
        {\"type\": \"ptp\", \"é\": [1]},\n    {\n \"type\": \"portmap\" }\n  ],\n  \"apple\": null\n}\n\n";

    #[test]
    fn an_entry_goes_in_once_and_last_and_out_without_a_trace() {
        let lists = [
            LIST.to_owned(),
            r#"{"name":"k","cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#.to_owned(),
            r#"{"plugins":[ {"type":"a"} , {"type":"b","plugins":[]} ],"cniVersions":["9.0.0","1.1.0"],"name":"k"}"#.to_owned(),
        ];
        for list in lists {
            let with = with_entry(&list, &entry()).expect("valid").expect("changed");
            let value: Value = serde_json::from_str(&with).expect("JSON");
            let before: Value = serde_json::from_str(&list).expect("JSON");
            let plugins = value["plugins"].as_array().expect("a list");
            assert_eq!(plugins[..plugins.len() - 1], before["plugins"].as_array().expect("a list")[..]);
            assert_eq!(plugins[plugins.len() - 1], json!(entry()));
            assert_eq!(with_entry(&with, &entry()).expect("valid"), None);
            assert_eq!(without_entry(&with).expect("valid"), Some(list.clone()));
            assert_eq!(without_entry(&list).expect("valid"), None);
            // An entry of another version, or in another place, or twice, is put right.
            let ours = json!(entry()).to_string();
            for wrong in [
                with.replace("/run/cni.sock", "/elsewhere"),
                list.replacen("{\"type\"", &format!("{ours}, {{\"type\""), 1),
                list.replacen("{\"type\"", &format!("{ours}, {ours}, {{\"type\""), 1),
                with.replacen("{\"type\"", "{\"type\":\"ztunnel-cni\"},{\"type\"", 1),
            ] {
                assert_eq!(with_entry(&wrong, &entry()).expect("valid").expect("changed"), with);
            }
        }
        assert!(
            with_entry(LIST, &entry())
                .expect("valid")
                .expect("changed")
                .contains("},\n    {\"type\":\"ztunnel-cni\"")
        );
    }

    #[test]
    fn a_single_configuration_becomes_a_list() {
        let single = "\n{ \"cniVersion\": \"0.4.0\", \"name\": \"n\", \"type\": \"ptp\", \"ipam\": {} }\n";
        let entry = Entry { converted_from: Some("10-x.conf".to_owned()), ..entry() };
        let list = converted(single, &entry).expect("valid");
        let value: Value = serde_json::from_str(&list).expect("JSON");
        let plugin: Value = serde_json::from_str(single).expect("JSON");
        assert_eq!(value, json!({ "cniVersion": "0.4.0", "name": "n", "plugins": [plugin, entry] }));
        assert_eq!(converted_from(&list).as_deref(), Some("10-x.conf"));
        assert_eq!(converted_from(LIST), None);
    }

    #[test]
    fn what_a_runtime_would_refuse_is_refused() {
        for (wrong, reason) in [
            ("", "EOF"),
            ("{", "EOF"),
            ("[]", "invalid"),
            (&LIST[..LIST.len() - 5], "EOF"),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#, "name"),
            (r#"{"name":"k","cniVersion":"1.0.0","plugins":[]}"#, "no plugin"),
            (r#"{"name":"k","cniVersion":"1.0.0","plugins":[{"type":"ztunnel-cni"}]}"#, "no plugin"),
            (r#"{"name":"k","cniVersion":"1.0.0","plugins":[{}]}"#, "type"),
            (r#"{"name":"k","cniVersion":"1.0.0"}"#, "plugins"),
            (r#"{"name":"k","cniVersion":"0.2.0","plugins":[{"type":"a"}]}"#, "0.2.0"),
            (r#"{"name":"k","plugins":[{"type":"a"}]}"#, "versions"),
        ] {
            let error = with_entry(wrong, &entry()).expect_err(wrong).to_string();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
        for (wrong, reason) in [
            (LIST, "type"),
            (r#"{"cniVersion":"1.0.0","type":"a"}"#, "name"),
            (r#"{"name":"n","type":"a"}"#, "versions"),
        ] {
            let error = converted(wrong, &entry()).expect_err(wrong).to_string();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }
}
