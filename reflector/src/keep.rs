//! An object of the API without what nobody here reads: left out while it is parsed, so that it never takes memory. A node
//! lists its images, and each object who changed which of its fields.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What is kept of a value. Lists are kept item by item.
#[derive(Clone, Copy, Debug)]
pub enum Keep {
    All,
    Nothing,
    /// These keys of a mapping.
    Only(&'static [(&'static str, Keep)]),
    /// All keys of a mapping, of these only so much.
    But(&'static [(&'static str, Keep)]),
}

impl Keep {
    fn of(self, key: &str) -> Self {
        let named = |list: &[(&str, Keep)]| list.iter().find(|(one, _)| *one == key).map(|(_, keep)| *keep);
        match self {
            Self::All | Self::Nothing => self,
            Self::Only(list) => named(list).unwrap_or(Self::Nothing),
            Self::But(list) => named(list).unwrap_or(Self::All),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Keep {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keep {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            kept.push(item);
        }
        Ok(Value::Array(kept))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            match self.of(&key) {
                Self::Nothing => drop(entries.next_value::<IgnoredAny>()?),
                keep => drop(kept.insert(key, entries.next_value_seed(keep)?)),
            }
        }
        Ok(Value::Object(kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_read_is_kept_in_lists_too() {
        const PORTS: Keep = Keep::Only(&[("ports", Keep::All)]);
        const SPEC: Keep = Keep::But(&[("containers", PORTS), ("volumes", Keep::Nothing)]);
        let text = r#"{"spec":{"a":[1,-2,0.5,true,null,"x"],"volumes":[{"b":1}],"containers":[{"ports":[{"c":{}}],"env":[]}]},"status":{}}"#;
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let kept = Keep::Only(&[("spec", SPEC)]).deserialize(&mut deserializer).expect("it is JSON");
        let expected = r#"{"spec":{"a":[1,-2,0.5,true,null,"x"],"containers":[{"ports":[{"c":{}}]}]}}"#;
        assert_eq!(kept, serde_json::from_str::<Value>(expected).expect("it is JSON"));
    }
}
