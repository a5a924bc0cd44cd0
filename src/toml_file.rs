//! Files in TOML, with places: each value knows its line, so that an error can name it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is wrong with a file of a configuration: in which line, and at which key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{path}, line {line}: {key}: {reason}", path = path.display())]
    Invalid { path: PathBuf, line: usize, key: String, reason: String },
    #[error("{path}, line {line}: {reason}; correct the file, or remove it", path = path.display())]
    Syntax { path: PathBuf, line: usize, reason: String },
}

/// A file that was read.
#[derive(Clone, Copy)]
pub(crate) struct File<'a> {
    pub(crate) path: &'a Path,
    pub(crate) text: &'a str,
}

impl<'a> File<'a> {
    /// # Errors
    /// Where it is not TOML.
    pub(crate) fn parse(self) -> Result<Spanned<DeTable<'a>>, Error> {
        DeTable::parse(self.text).map_err(|error| Error::Syntax {
            path: self.path.to_owned(),
            line: self.line(error.span().map_or(0, |span| span.start)),
            reason: format!("not TOML: {}", error.message()),
        })
    }

    fn line(self, at: usize) -> usize {
        self.newlines(0, at).saturating_add(1)
    }

    fn newlines(self, from: usize, to: usize) -> usize {
        let between = self.text.as_bytes().get(from..to).unwrap_or_default();
        between.iter().filter(|byte| **byte == b'\n').count()
    }

    /// The lines of tables that follow each other in the file. It is gone through once, however many there are.
    pub(crate) fn lines(self, tables: &[Table<'_>]) -> Vec<usize> {
        let (mut at, mut line) = (0, 1usize);
        let mut next = |table: &Table<'_>| {
            line = line.saturating_add(self.newlines(at, table.span.0));
            at = at.max(table.span.0);
            line
        };
        tables.iter().map(&mut next).collect()
    }
}

/// A table of a file.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    file: File<'a>,
    span: (usize, usize),
    entries: &'a DeTable<'a>,
}

/// What a plain value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Flag,
    Number,
}

/// A value of a table, with its place.
#[derive(Clone, Copy)]
pub(crate) struct Value<'a> {
    file: File<'a>,
    key: &'a str,
    span: (usize, usize),
    value: &'a DeValue<'a>,
}

impl<'a> Table<'a> {
    pub(crate) fn root(file: File<'a>, parsed: &'a Spanned<DeTable<'a>>) -> Self {
        Self { file, span: (0, 0), entries: parsed.get_ref() }
    }

    /// Go's readers of TOML take a key in any case where there is none that is the same.
    pub(crate) fn get(&self, key: &str) -> Option<Value<'a>> {
        let same = |found: &&(&'a str, Value<'a>)| found.0 == key;
        let all = self.entries();
        let found = all.iter().find(same).or_else(|| all.iter().find(|found| found.0.eq_ignore_ascii_case(key)));
        found.map(|(_, value)| *value)
    }

    /// All keys and values, in the order of the file.
    pub(crate) fn entries(&self) -> Vec<(&'a str, Value<'a>)> {
        let entry = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let (key, at): (&'a std::borrow::Cow<'a, str>, _) = (key.get_ref(), key.span());
            let value = Value { file: self.file, key, span: bounds(at), value: value.get_ref() };
            (key.as_ref(), value)
        };
        let mut entries: Vec<_> = self.entries.iter().map(entry).collect();
        entries.sort_by_key(|(_, value)| value.span);
        entries
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.get(key).map(Value::text).transpose()
    }

    pub(crate) fn flag(&self, key: &str) -> Result<bool, Error> {
        Ok(self.get(key).map(Value::flag).transpose()?.unwrap_or(false))
    }

    pub(crate) fn table(&self, key: &str) -> Result<Option<Table<'a>>, Error> {
        self.get(key).map(Value::table).transpose()
    }

    /// `[[key]]`
    pub(crate) fn tables(&self, key: &str) -> Result<Vec<Table<'a>>, Error> {
        let tables = |value: Value<'a>| value.items()?.into_iter().map(Value::table).collect();
        self.get(key).map_or_else(|| Ok(Vec::new()), tables)
    }

    /// The error of a key, or of the table where it has no such key.
    pub(crate) fn refuse<E: From<Error>>(&self, key: &str, reason: impl Into<String>) -> E {
        match self.get(key) {
            Some(value) => value.refuse(reason),
            None => refused(self.file, self.span.0, key, reason.into()).into(),
        }
    }
}

impl<'a> Value<'a> {
    pub(crate) fn text(self) -> Result<&'a str, Error> {
        match self.value {
            DeValue::String(text) => Ok(text),
            _ => Err(self.refuse("a text in quotes is wanted")),
        }
    }

    pub(crate) fn flag(self) -> Result<bool, Error> {
        match self.value {
            DeValue::Boolean(flag) => Ok(*flag),
            _ => Err(self.refuse("true or false is wanted, without quotes")),
        }
    }

    pub(crate) fn table(self) -> Result<Table<'a>, Error> {
        match self.value {
            DeValue::Table(entries) => Ok(Table { file: self.file, span: self.span, entries }),
            _ => Err(self.refuse("a table is wanted")),
        }
    }

    /// Of an array.
    pub(crate) fn items(self) -> Result<Vec<Value<'a>>, Error> {
        match self.value {
            DeValue::Array(items) => Ok(items
                .iter()
                .map(|item| Value { span: bounds(item.span()), value: item.get_ref(), ..self })
                .collect()),
            _ => Err(self.refuse("an array is wanted")),
        }
    }

    pub(crate) fn texts(self) -> Result<Vec<&'a str>, Error> {
        self.items()?.into_iter().map(Value::text).collect()
    }

    /// One that is no array and no table, as it would be typed in a shell.
    pub(crate) fn plain(self) -> Option<(Kind, String)> {
        match self.value {
            DeValue::String(text) => Some((Kind::Text, text.to_string())),
            DeValue::Boolean(flag) => Some((Kind::Flag, flag.to_string())),
            DeValue::Integer(number) => {
                let number = i128::from_str_radix(number.as_str(), number.radix()).ok()?;
                Some((Kind::Number, number.to_string()))
            }
            _ => None,
        }
    }

    pub(crate) const fn is_array(&self) -> bool {
        matches!(self.value, DeValue::Array(_))
    }

    pub(crate) const fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    /// The line in which it is named first.
    pub(crate) fn line(&self) -> usize {
        self.file.line(self.first())
    }

    pub(crate) const fn is_text(&self) -> bool {
        matches!(self.value, DeValue::String(_))
    }

    /// Where it is named first: its own key, or that of a table in it, whose header names both.
    pub(crate) fn first(&self) -> usize {
        let within = match self.value {
            DeValue::Table(entries) => entries.keys().map(|key| key.span().start).min(),
            _ => None,
        };
        within.map_or(self.span.0, |within| within.min(self.span.0))
    }

    /// Whether it is named in a header in brackets, rather than behind a key.
    pub(crate) fn is_headed(&self) -> bool {
        let before = self.file.text.get(..self.first()).unwrap_or_default();
        let line = before.rsplit('\n').next().unwrap_or_default();
        line.trim_start().starts_with('[')
    }

    pub(crate) fn refuse<E: From<Error>>(&self, reason: impl Into<String>) -> E {
        refused(self.file, self.first(), self.key, reason.into()).into()
    }
}

fn refused(file: File<'_>, at: usize, key: &str, reason: String) -> Error {
    Error::Invalid { path: file.path.to_owned(), line: file.line(at), key: key.to_owned(), reason }
}

const fn bounds(span: Range<usize>) -> (usize, usize) {
    (span.start, span.end)
}
