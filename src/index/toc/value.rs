//! JSON values read without failing: what a value should have been is judged later, when the entry's name is known.

use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// A value, as far as a TOC has any use for one.
pub(super) enum Value<'a> {
    Null,
    Text(&'a str),
    Number(u64),
    /// Anything else, described.
    Other(&'static str),
}

impl Value<'_> {
    /// For messages.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Text(text) => crate::index::error::shown(text.as_bytes()),
            Self::Number(number) => number.to_string(),
            Self::Other(what) => (*what).to_owned(),
        }
    }
}

/// Reads one value, whatever it is, and hands it on.
pub(super) struct ValueSeed<F>(pub(super) F);

impl<'de, F: FnOnce(Value<'_>)> DeserializeSeed<'de> for ValueSeed<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: FnOnce(Value<'_>)> Visitor<'de> for ValueSeed<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        (self.0)(Value::Null);
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        (self.0)(Value::Other("a boolean"));
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<(), E> {
        (self.0)(Value::Number(number));
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        (self.0)(Value::Other("a negative number"));
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        (self.0)(Value::Other("a number that is not whole, or too large"));
        Ok(())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        (self.0)(Value::Text(text));
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<(), S::Error> {
        while list.next_element::<Skipped>()?.is_some() {}
        (self.0)(Value::Other("a list"));
        Ok(())
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while map.next_entry::<Skipped, Skipped>()?.is_some() {}
        (self.0)(Value::Other("an object"));
        Ok(())
    }
}

/// A value that nobody asked for. Unlike serde's own way to ignore one, its depth counts: a TOC nested deeper than serde_json follows (128)
/// is refused, whatever key it is under.
pub(super) struct Skipped;

impl<'de> Deserialize<'de> for Skipped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ValueSeed(|_: Value<'_>| ()).deserialize(deserializer).map(|()| Self)
    }
}
