//! JSON as the tools read it that write and load images, which are made in Go (encoding/json of Go 1.26, "Unmarshal").
//!
//! A key means a field in whatever case it is written, and where a field comes twice the last one counts. So `manifest.json` and the
//! configs that somebody has written by hand mean here what they mean there.

use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Number, Value};

/// Reads a type whose fields have names in lower case.
///
/// # Errors
/// Where the bytes are no JSON, or not of that type.
pub(crate) fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    T::deserialize(serde_json::from_slice::<Folded>(bytes)?.0)
}

/// Any value, the keys of all objects in it in lower case.
struct Folded(Value);

impl<'de> Deserialize<'de> for Folded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Folding).map(Self)
    }
}

/// Two letters of other scripts are S and K in another case.
fn fold(key: &str) -> String {
    let fold = |letter: char| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    };
    key.chars().map(fold).collect()
}

/// The fields of an object are added to those of one that came before.
fn put(object: &mut Map<String, Value>, key: String, value: Value) {
    match (object.get_mut(&key), value) {
        (Some(Value::Object(before)), Value::Object(fields)) => {
            fields.into_iter().for_each(|(key, value)| put(before, key, value));
        }
        (_, value) => drop(object.insert(key, value)),
    }
}

struct Folding;

impl<'de> Visitor<'de> for Folding {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Folded(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Folded(value))) = fields.next_entry::<String, _>()? {
            put(&mut object, fold(&key), value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Item {
        config: String,
        repotags: Option<Vec<String>>,
        inner: Option<Inner>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Inner {
        a_b: Option<i64>,
        c: Option<f64>,
    }

    fn item(text: &str) -> Item {
        from_slice(text.as_bytes()).unwrap()
    }

    #[test]
    fn keys_are_read_in_any_case() {
        let expected = Item { config: "Ab".into(), repotags: Some(vec!["X".into()]), inner: None };
        for text in [
            r#"{"Config": "Ab", "RepoTags": ["X"]}"#,
            r#"{"config": "Ab", "repotags": ["X"], "Inner": null}"#,
            r#"{"CONFIG": "Ab", "repoTags": ["X"], "other": {"config": [true, null, -1, 1.5, 18446744073709551615]}}"#,
            "{\"config\": \"Ab\", \"repotag\u{17f}\": [\"X\"]}",
        ] {
            assert_eq!(item(text), expected, "{text}");
        }
        assert_eq!(
            item(r#"{"Config": "", "Inner": {"A_B": -7, "C": 0.5}}"#).inner,
            Some(Inner { a_b: Some(-7), c: Some(0.5) })
        );
    }

    #[test]
    fn of_a_field_that_comes_twice_the_last_counts() {
        assert_eq!(item(r#"{"config": "z", "Config": "a"}"#).config, "a");
        assert_eq!(item(r#"{"Config": "a", "config": "z"}"#).config, "z");
        let both = item(r#"{"Config": "", "Inner": {"A_B": 1, "C": 2}, "inner": {"a_b": 3}}"#);
        assert_eq!(both.inner, Some(Inner { a_b: Some(3), c: Some(2.0) }));
    }

    #[test]
    fn what_is_no_json_or_of_another_type_is_an_error() {
        for text in ["", "{", "[]", r#"{"Config": 7}"#, r#"{"Config": "a"} x"#, &"[".repeat(100_000)] {
            assert!(from_slice::<Item>(text.as_bytes()).is_err(), "{text:.20}");
        }
    }
}
