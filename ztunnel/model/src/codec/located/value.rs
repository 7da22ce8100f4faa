//! Serde's view of the tree: a node, its elements and entries, an enum's variant.

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::decode::Reading;
use super::fault::{self, Fault, Reason};
use super::filling::Filling;
use super::key::Key;
use super::scalar::{self, Meaning};
use super::tree::{Entry, Kind, NodeId};

/// One node, as serde reads it.
#[derive(Clone, Copy)]
pub(super) struct Value<'r, 'de> {
    pub reading: &'r Reading<'de>,
    pub id: NodeId,
}

impl<'r, 'de> Value<'r, 'de> {
    fn kind(self) -> &'de Kind {
        self.reading.kind(self.id)
    }

    fn child(self, id: NodeId) -> Self {
        Value { reading: self.reading, id }
    }

    fn meaning(self) -> Option<(Meaning, &'de str)> {
        match self.kind() {
            Kind::Scalar { text, plain: true } => Some((scalar::meaning(text), text)),
            Kind::Scalar { text, plain: false } => Some((Meaning::Text, text)),
            _ => None,
        }
    }

    fn expected<T>(self, what: &str) -> Result<T, Fault> {
        let found = self.kind().describe();
        let hint = match self.meaning() {
            Some((Meaning::Null, _)) | None => "",
            Some(_) if what == "a text" => "; put it in quotes",
            Some((Meaning::Text, _)) if matches!(self.kind(), Kind::Scalar { plain: false, .. }) => {
                "; leave the quotes away if it is one"
            }
            Some(_) => "",
        };
        Err(Fault::text(format!("expected {what}, found {found}{hint}")).at(self.id))
    }

    /// Puts the place to a complaint of the type itself, and the text it complains about.
    fn place<T>(self, outcome: Result<T, Fault>) -> Result<T, Fault> {
        outcome.map_err(|mut fault| {
            if fault.node.is_none()
                && let (Reason::Text(reason), Some((_, text))) = (&mut fault.reason, self.meaning())
                && !reason.contains(text)
            {
                *reason = format!("{text:?}: {reason}");
            }
            fault.at(self.id)
        })
    }

    fn text<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.meaning() {
            Some((Meaning::Text, text)) => self.place(visitor.visit_str(text)),
            _ => self.expected("a text"),
        }
    }

    fn number<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.meaning() {
            Some((Meaning::Unsigned(number), _)) => self.place(visitor.visit_u64(number)),
            Some((Meaning::Signed(number), _)) => self.place(visitor.visit_i64(number)),
            _ => self.expected("a whole number"),
        }
    }

    fn float<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.meaning() {
            Some((Meaning::Float(number), _)) => self.place(visitor.visit_f64(number)),
            Some((Meaning::Unsigned(_) | Meaning::Signed(_), _)) => self.number(visitor),
            _ => self.expected("a number"),
        }
    }

    fn list<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.kind() {
            Kind::Sequence(items) => {
                self.place(visitor.visit_seq(Elements { value: self, items: items.iter() }))
            }
            _ => self.expected("a list"),
        }
    }

    fn mapping<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.kind() {
            Kind::Mapping(entries) => self.place(visitor.visit_map(Entries {
                reading: self.reading,
                mapping: self.id,
                list: self.reading.readable(entries).into_iter(),
                filled: self.reading.filled(self.id).into_iter(),
                next: None,
            })),
            _ => self.expected("a mapping"),
        }
    }

    fn refuse_unknown(self, known: &[&str]) {
        if let Kind::Mapping(entries) = self.kind() {
            for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
                self.reading.unknown_key(entry, fault::unknown_key(&entry.key, known));
            }
        }
    }
}

macro_rules! as_number {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.number(visitor)
        })*
    };
}

macro_rules! as_text {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.text(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Value<'_, 'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match (self.kind(), self.meaning()) {
            (Kind::Sequence(_), _) => self.list(visitor),
            (Kind::Mapping(_), _) => self.mapping(visitor),
            (_, Some((Meaning::Null, _))) => self.place(visitor.visit_unit()),
            (_, Some((Meaning::Bool(truth), _))) => self.place(visitor.visit_bool(truth)),
            (_, Some((Meaning::Text, _))) => self.text(visitor),
            (_, Some(_)) => self.float(visitor),
            (_, None) => Err(Fault::new(Reason::Consequence).at(self.id)),
        }
    }

    as_number! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
    }
    as_text! { deserialize_char deserialize_str deserialize_string deserialize_identifier }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.meaning() {
            Some((Meaning::Bool(truth), _)) => self.place(visitor.visit_bool(truth)),
            _ => self.expected("true or false"),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.float(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.float(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.meaning() {
            Some((Meaning::Null, _)) => self.place(visitor.visit_none()),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let outcome = visitor.visit_newtype_struct(self);
        self.place(outcome)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.mapping(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.refuse_unknown(fields);
        self.mapping(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let (name, content) = match self.kind() {
            Kind::Scalar { text, .. } => (text, None),
            Kind::Mapping(entries) => match entries.as_slice() {
                [entry] if self.reading.is_aside(entry.value) && variants.contains(&entry.key.as_str()) => {
                    return Err(Fault::new(Reason::Consequence).at(self.id));
                }
                [entry] => (&entry.key, Some(self.child(entry.value))),
                _ => return self.expected(&format!("one key out of {}", variants.join(", "))),
            },
            _ => return self.expected(&format!("one out of {}", variants.join(", "))),
        };
        let outcome = visitor.visit_enum(Variant { name, content });
        self.place(outcome)
    }

    forward_to_deserialize_any! { bytes byte_buf unit unit_struct ignored_any }
}

struct Elements<'r, 'de> {
    value: Value<'r, 'de>,
    items: std::slice::Iter<'de, NodeId>,
}

impl<'de> SeqAccess<'de> for Elements<'_, 'de> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let reading = self.value.reading;
        match self.items.find(|id| !reading.is_aside(**id)) {
            Some(id) => seed.deserialize(self.value.child(*id)).map(Some),
            None => Ok(None),
        }
    }
}

struct Entries<'r, 'de> {
    reading: &'r Reading<'de>,
    mapping: NodeId,
    list: std::vec::IntoIter<&'de Entry>,
    filled: std::vec::IntoIter<&'static str>,
    next: Option<&'de Entry>,
}

impl<'de> MapAccess<'de> for Entries<'_, 'de> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        self.next = self.list.next();
        if let Some(entry) = self.next {
            let in_key = |mut fault: Fault| {
                fault.position = Some(entry.position);
                fault.at(entry.value)
            };
            return seed.deserialize(Key { text: &entry.key }).map(Some).map_err(in_key);
        }
        match self.filled.next() {
            Some(key) => seed.deserialize(Key { text: key }).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        match self.next.take() {
            Some(entry) => seed.deserialize(Value { reading: self.reading, id: entry.value }),
            None => seed.deserialize(Filling).map_err(|_| Fault::new(Reason::Consequence).at(self.mapping)),
        }
    }
}

struct Variant<'r, 'de> {
    name: &'de str,
    content: Option<Value<'r, 'de>>,
}

impl<'r, 'de> EnumAccess<'de> for Variant<'r, 'de> {
    type Error = Fault;
    type Variant = Content<'r, 'de>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Content<'r, 'de>), Fault> {
        let name: StrDeserializer<'_, Fault> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, Content(self.content)))
    }
}

struct Content<'r, 'de>(Option<Value<'r, 'de>>);

impl<'r, 'de> Content<'r, 'de> {
    fn some(self) -> Result<Value<'r, 'de>, Fault> {
        self.0.ok_or_else(|| Fault::text("expected a mapping with this word as its key".to_owned()))
    }
}

impl<'de> VariantAccess<'de> for Content<'_, 'de> {
    type Error = Fault;

    /// `Word`, `Word:` and `Word: []` are the same.
    fn unit_variant(self) -> Result<(), Fault> {
        match self.0 {
            None => Ok(()),
            Some(value) => match value.kind() {
                Kind::Sequence(items) if items.is_empty() => Ok(()),
                kind if kind.is_null() => Ok(()),
                _ => value.expected("[]"),
            },
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Fault> {
        seed.deserialize(self.some()?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Fault> {
        self.some()?.deserialize_tuple(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.some()?.deserialize_struct("", fields, visitor)
    }
}
