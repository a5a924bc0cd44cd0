//! JSON as the tools read it that write and load images, which are made in Go (encoding/json of Go 1.26, "Unmarshal").
//!
//! A key means a field in whatever case it is written; null means what a field has without it. Where a field comes twice, the last one counts,
//! and objects are added up. What is no text becomes U+FFFD, and what nobody asks for is only looked at for its form. So documents that
//! somebody has written by hand mean here what they mean there.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::value::RawValue;
use serde_json::{Error, Value};

/// Reads a type.
///
/// # Errors
/// Where the bytes are no JSON, or not of that type.
pub(crate) fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    let text = pair_surrogates(&to_text(bytes));
    let value: &RawValue = serde_json::from_str(&text)?;
    T::deserialize(Given { field: "", values: vec![value.get()] })
}

/// As in Go, each byte that is not UTF-8 becomes a character of its own.
fn to_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

/// Puts U+FFFD in the place of an escaped surrogate that is half of no pair, which no text can hold.
fn pair_surrogates(text: &str) -> String {
    let (mut paired, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, escape)) = rest.find('\\').and_then(|at| rest.split_at_checked(at)) {
        paired.push_str(before);
        let (kept, read) = match (surrogate(escape), escape.get(6..).and_then(surrogate)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (escape.get(..12), 12),
            (Some(_), _) => (Some("\\ufffd"), 6),
            // The character behind it may be another backslash.
            (None, _) => {
                let length = escape.chars().take(2).map(char::len_utf8).sum();
                (escape.get(..length), length)
            }
        };
        paired.push_str(kept.unwrap_or_default());
        rest = escape.get(read..).unwrap_or_default();
    }
    paired + rest
}

fn surrogate(escape: &str) -> Option<u16> {
    let digits = escape.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16).ok().filter(|unit| (0xd800..=0xdfff).contains(unit))
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

const NULL: &str = "null";

/// The fields of an object in their order, also those that come twice.
struct Fields<'de>(Vec<(String, &'de str)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
            fields.push((key, value.get()));
        }
        Ok(Fields(fields))
    }
}

/// What one field was given, in this order: JSON whose form is right.
struct Given<'de> {
    /// For messages; empty where it is all of a document.
    field: &'static str,
    values: Vec<&'de str>,
}

impl<'de> Given<'de> {
    /// null empties what is a list, a map or optional: what came behind the last one.
    fn behind_null(mut self) -> Self {
        let start = self.values.iter().rposition(|value| *value == NULL).map_or(0, |null| null.saturating_add(1));
        self.values.drain(..start);
        self
    }

    /// null leaves all else as it is: what counts without it.
    fn without_null(mut self) -> Self {
        self.values.retain(|value| *value != NULL);
        self
    }

    /// The fields of all of its objects.
    fn fields(&self) -> Result<Vec<(String, &'de str)>, Error> {
        let mut fields = Vec::new();
        for value in &self.values {
            fields.extend(serde_json::from_str::<Fields<'_>>(value)?.0);
        }
        Ok(fields)
    }

    fn has_only(&self, start: char) -> bool {
        self.values.iter().all(|value| value.starts_with(start))
    }

    /// Visits the value that counts as `visit` wants it, or `none`, which is what the field has without it.
    fn visit<T>(self, none: Value, visit: impl FnOnce(Value) -> Result<T, Error>) -> Result<T, Error> {
        let field = self.field;
        let value = self.without_null().values.pop().map_or(Ok(none), serde_json::from_str);
        value.and_then(visit).map_err(|error| match field {
            "" => error,
            field => Error::custom(format_args!("{field}: {error}")),
        })
    }
}

impl<'de> IntoDeserializer<'de, Error> for Given<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.visit(0.into(), |value| value.$method(visitor))
        })*
    };
}

impl<'de> Deserializer<'de> for Given<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit(Value::Null, |value| value.deserialize_any(visitor))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit(false.into(), |value| value.deserialize_bool(visitor))
    }

    numbers!(deserialize_i32 deserialize_i64 deserialize_u32 deserialize_u64 deserialize_f64);

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit("".into(), |value| value.deserialize_str(visitor))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let given = self.behind_null();
        if given.values.is_empty() { visitor.visit_none() } else { visitor.visit_some(given) }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let given = self.behind_null();
        if !given.has_only('[') {
            return given.visit(Value::Null, |value| value.deserialize_seq(visitor));
        }
        let items = given.values.last().map_or(Ok(Vec::new()), |list| serde_json::from_str::<Vec<&RawValue>>(list))?;
        let one = |item: &'de RawValue| Given { field: given.field, values: vec![item.get()] };
        visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(one)))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let given = self.behind_null();
        if !given.has_only('{') {
            return given.visit(Value::Null, |value| value.deserialize_map(visitor));
        }
        let one = |(key, value)| (key, Given { field: given.field, values: vec![value] });
        let fields: BTreeMap<_, _> = given.fields()?.into_iter().map(one).collect();
        visitor.visit_map(MapDeserializer::new(fields.into_iter()))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let given = self.without_null();
        if !given.has_only('{') {
            return given.visit(Value::Null, |value| value.deserialize_map(visitor));
        }
        let known: BTreeMap<String, &'static str> = known.iter().map(|field| (fold(field), *field)).collect();
        let mut fields: BTreeMap<&'static str, Given<'de>> = BTreeMap::new();
        for (key, value) in given.fields()? {
            if let Some(field) = known.get(&fold(&key)) {
                let given = fields.entry(field).or_insert(Given { field, values: Vec::new() });
                given.values.push(value);
            }
        }
        visitor.visit_map(MapDeserializer::new(fields.into_iter()))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u8 u16 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Item {
        config: String,
        repo_tags: Option<Vec<String>>,
        inner: Option<Inner>,
        notes: BTreeMap<String, String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Inner {
        a_b: Option<i64>,
        c: Option<f64>,
    }

    fn item(text: &str) -> Item {
        from_slice(text.as_bytes()).unwrap()
    }

    fn tags(text: &str) -> Vec<String> {
        item(&format!(r#"{{"RepoTags": {text}}}"#)).repo_tags.unwrap()
    }

    #[test]
    fn keys_are_read_in_any_case() {
        let expected = Item { config: "Ab".into(), repo_tags: Some(vec!["X".into()]), ..Item::default() };
        for text in [
            r#"{"Config": "Ab", "RepoTags": ["X"]}"#,
            r#"{"config": "Ab", "repotags": ["X"], "Inner": null}"#,
            r#"{"CONFIG": "Ab", "repoTags": ["X"], "other": {"config": [true, null, -1, 1.5, 18446744073709551615]}}"#,
            "{\"config\": \"Ab\", \"repotag\u{17f}\": [\"X\"]}",
        ] {
            assert_eq!(item(text), expected, "{text}");
        }
        assert_eq!(item(r#"{"Inner": {"A_B": -7, "C": 0.5}}"#).inner, Some(Inner { a_b: Some(-7), c: Some(0.5) }));
        let notes = item(r#"{"Notes": {"A": "1", "a": "2", "n": null}}"#).notes;
        let notes: Vec<_> = notes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(notes, [("A", "1"), ("a", "2"), ("n", "")], "the keys of a map are none of fields");
    }

    #[test]
    fn of_a_field_that_comes_twice_the_last_counts() {
        assert_eq!(item(r#"{"config": "z", "Config": "a"}"#).config, "a");
        assert_eq!(item(r#"{"Config": "a", "config": "z"}"#).config, "z");
        assert_eq!(item(r#"{"Inner": {"A_B": 1}, "inner": {"a_b": 2, "A_b": 3}}"#).inner.unwrap().a_b, Some(3));
        let both = item(r#"{"Inner": {"A_B": 1, "C": 2}, "inner": {"a_b": 3}}"#);
        assert_eq!(both.inner, Some(Inner { a_b: Some(3), c: Some(2.0) }), "objects are added up");
        let both = item(r#"{"notes": {"a": "1", "b": "1"}, "Notes": {"b": "2"}}"#).notes;
        assert_eq!(both.into_values().collect::<Vec<_>>(), ["1", "2"]);
    }

    #[test]
    fn null_is_nothing() {
        assert_eq!(item(r#"{"Config": "c", "config": null}"#).config, "c");
        assert_eq!(item(r#"{"config": null, "notes": null}"#), Item::default());
        assert_eq!(item("null"), Item::default());
        assert_eq!(item(r#"{"RepoTags": ["a"], "repotags": null}"#).repo_tags, None);
        assert_eq!(item(r#"{"Inner": {"C": 1}, "inner": null, "INNER": {"a_b": 1}}"#).inner.unwrap().c, None);
        assert_eq!(item(r#"{"notes": {"a": "1"}, "Notes": null}"#).notes.len(), 0);
        assert_eq!(tags(r#"[null, "a"]"#), ["", "a"]);
    }

    #[test]
    fn what_is_no_text_becomes_a_character_that_says_so() {
        for half in [r"\ud800", r"\uDFFF", "\u{fffd}"] {
            assert_eq!(tags(&format!(r#"["a{half}b"]"#)), ["a\u{fffd}b"], "{half}");
        }
        assert_eq!(tags(r#"["\ud83d\ude00", "\\ud800", "\ud800\ud83d\ude00"]"#), ["😀", r"\ud800", "\u{fffd}😀"]);
        assert_eq!(tags(r#"["\udc00\ud800\n\u00e9"]"#), ["\u{fffd}\u{fffd}\n\u{e9}"]);
        let config = from_slice::<Item>(b"{\"config\": \"caf\xe9, \xf0\x9f\x98\", \"x\": \"\xff\"}").unwrap().config;
        assert_eq!(config, "caf\u{fffd}, \u{fffd}\u{fffd}\u{fffd}");
    }

    #[test]
    fn what_nobody_asks_for_is_only_looked_at_for_its_form() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        for other in ["1e999", "-1e-999", r#""\ud800""#, r#"{"a": 1, "a": {}}"#, &deep] {
            assert_eq!(item(&format!(r#"{{"other": {other}, "config": "c"}}"#)).config, "c");
        }
    }

    #[test]
    fn what_is_no_json_or_of_another_type_is_an_error() {
        let error = |text: &str| from_slice::<Item>(text.as_bytes()).unwrap_err().to_string();
        for text in ["", "{", "[]", "7", r#"{"Config": "a"} x"#, &"[".repeat(100_000), r#"{"x": "\ud8"}"#, "{\"\\"] {
            assert!(!error(text).is_empty(), "{text:.20}");
        }
        assert_eq!(error(r#"{"Config": 7}"#), "config: invalid type: integer `7`, expected a string");
        assert_eq!(error(r#"{"REPOTAGS": {}}"#), "repoTags: invalid type: map, expected a sequence");
        assert_eq!(error(r#"{"repoTags": ["a", 1]}"#), "repoTags: invalid type: integer `1`, expected a string");
        assert!(error(r#"{"Inner": []}"#).starts_with("inner: invalid type: sequence"));
        assert!(error(r#"{"Inner": {"C": 1e999}}"#).starts_with("c: number out of range"));
    }
}
