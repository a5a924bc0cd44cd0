//! containerd's filters: which snapshots a `List` is about (its pkg/filters).
//!
//! ```text
//! filter    = selector ("," selector)*                  all of them
//! selector  = field ("." field)* (operator value)?      without an operator: whether there is one
//! operator  = "==" | "!=" | "~="                        "~=": a regular expression
//! field     = quoted | [A-Za-z0-9_]+
//! value     = quoted | anything without a comma and spaces
//! quoted    = a Go string; an expression may also stand between slashes or bars
//! ```

use std::iter::Peekable;
use std::str::Chars;

use regex_lite::Regex;

use super::error::{Code, Status};

/// Filters of a call, and bytes of each.
const MOST: usize = 64;
const LONGEST: usize = 16 << 10;

/// Any of these; none: all.
pub(super) struct Filters(Vec<Vec<Selector>>);

struct Selector {
    path: Vec<String>,
    wants: Wants,
}

enum Wants {
    Presence,
    Equal(String),
    Other(String),
    Match(Regex),
}

impl Filters {
    pub(super) fn parse(filters: &[String]) -> Result<Self, Status> {
        if filters.len() > MOST || filters.iter().any(|filter| filter.len() > LONGEST) {
            return Err(Status::new(Code::InvalidArgument, "too many filters, or one that is too long"));
        }
        let parse = |filter: &String| match filter.is_empty() {
            true => Ok(Vec::new()),
            false => Parser { rest: filter.chars().peekable() }.selectors().map_err(|why| {
                Status::new(Code::InvalidArgument, format!("the filter {filter:?} is not understood: {why}"))
            }),
        };
        filters.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// `value`: what an object has by a path.
    pub(super) fn matches(&self, value: impl Fn(&[String]) -> Option<String>) -> bool {
        let fits = |selector: &Selector| {
            let found = value(&selector.path);
            match (&selector.wants, found) {
                (Wants::Presence, found) => found.is_some(),
                (Wants::Equal(wanted), found) => found.as_ref() == Some(wanted),
                // As containerd has it: what is not there is empty.
                (Wants::Other(unwanted), found) => found.unwrap_or_default() != *unwanted,
                (Wants::Match(expression), found) => expression.is_match(&found.unwrap_or_default()),
            }
        };
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(fits))
    }
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
}

impl Parser<'_> {
    fn selectors(&mut self) -> Result<Vec<Selector>, String> {
        let mut selectors = vec![self.selector()?];
        loop {
            self.skip_spaces();
            match self.rest.next() {
                None => return Ok(selectors),
                Some(',') => selectors.push(self.selector()?),
                Some(other) => return Err(format!("{other:?} is not expected")),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, String> {
        let mut path = vec![self.field()?];
        while self.rest.next_if_eq(&'.').is_some() {
            path.push(self.field()?);
        }
        self.skip_spaces();
        if matches!(self.rest.peek(), None | Some(',')) {
            return Ok(Selector { path, wants: Wants::Presence });
        }
        let mut operator = String::new();
        while let Some(next) = self.rest.next_if(|next| matches!(next, '=' | '!' | '~')) {
            operator.push(next);
        }
        let wants = match operator.as_str() {
            "==" => Wants::Equal(self.value(false)?),
            "!=" => Wants::Other(self.value(false)?),
            "~=" => Wants::Match(Regex::new(&self.value(true)?).map_err(|error| error.to_string())?),
            _ => return Err(format!("{operator:?} is no operator")),
        };
        Ok(Selector { path, wants })
    }

    fn field(&mut self) -> Result<String, String> {
        self.skip_spaces();
        if self.rest.peek() == Some(&'"') {
            return self.quoted();
        }
        let mut field = String::new();
        while let Some(next) = self.rest.next_if(|next| next.is_ascii_alphanumeric() || *next == '_') {
            field.push(next);
        }
        if field.is_empty() { Err("a field is missing".to_owned()) } else { Ok(field) }
    }

    fn value(&mut self, is_expression: bool) -> Result<String, String> {
        self.skip_spaces();
        match self.rest.peek() {
            Some('"') => return self.quoted(),
            Some('/' | '|') if is_expression => return self.quoted(),
            Some('/' | '|') => return Err("this quote is for regular expressions alone".to_owned()),
            _ => {}
        }
        let mut value = String::new();
        while let Some(next) = self.rest.next_if(|next| *next != ',' && !next.is_whitespace() && !next.is_control()) {
            value.push(next);
        }
        if value.is_empty() { Err("a value is missing".to_owned()) } else { Ok(value) }
    }

    /// Escapes of bytes may be of UTF-8.
    fn quoted(&mut self) -> Result<String, String> {
        let open = || "a quoted value does not end".to_owned();
        let quote = self.rest.next().ok_or_else(open)?;
        let mut bytes = Vec::new();
        loop {
            let next = self.rest.next().ok_or_else(open)?;
            match next {
                _ if next == quote => break,
                '\n' => return Err(open()),
                '\\' => self.escaped(quote, &mut bytes)?,
                _ => bytes.extend(next.to_string().into_bytes()),
            }
        }
        String::from_utf8(bytes).map_err(|_| "a quoted value is not text".to_owned())
    }

    fn escaped(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), String> {
        let wrong = || "an escape is not understood".to_owned();
        let next = self.rest.next().ok_or_else(wrong)?;
        let byte = match next {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' => b'\\',
            'x' => u8::try_from(self.number(0, 16, 2)?).map_err(|_| wrong())?,
            '0'..='7' => u8::try_from(self.number(next.to_digit(8).unwrap_or(0), 8, 2)?).map_err(|_| wrong())?,
            'u' | 'U' => {
                let number = self.number(0, 16, if next == 'u' { 4 } else { 8 })?;
                let scalar = char::from_u32(number).ok_or_else(wrong)?;
                bytes.extend(scalar.to_string().into_bytes());
                return Ok(());
            }
            _ if next == quote => u8::try_from(quote).map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        bytes.push(byte);
        Ok(())
    }

    fn number(&mut self, first: u32, radix: u32, digits: usize) -> Result<u32, String> {
        (0..digits).try_fold(first, |number, _| {
            let digit = self.rest.next().and_then(|next| next.to_digit(radix));
            let next = digit.and_then(|digit| number.checked_mul(radix)?.checked_add(digit));
            next.ok_or_else(|| "an escape is cut short".to_owned())
        })
    }

    fn skip_spaces(&mut self) {
        while self.rest.next_if(|next| next.is_whitespace()).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filters: &[&str]) -> bool {
        let filters: Vec<_> = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let value = |path: &[String]| match path.first().map(String::as_str) {
            Some("name") => Some("sha256:ab".to_owned()),
            Some("parent") => Some(String::new()),
            Some("labels") => (path[1..].join(".") == "a.b/c").then(|| "v w".to_owned()),
            _ => None,
        };
        Filters::parse(&filters).unwrap().matches(value)
    }

    #[test]
    fn filters_are_those_of_containerd() {
        assert!(matches(&[]) && matches(&[""]));
        assert!(matches(&["name==sha256:ab"]) && !matches(&["name==sha256:a"]));
        assert!(matches(&[r#"labels."a.b/c"=="v w",parent=="""#]));
        assert!(matches(&[r#"labels."a.b/c""#]) && !matches(&["labels.x"]) && matches(&["labels.x!=1"]));
        assert!(matches(&["name==x", "name~=/^sha256:[a-z]+$/"]) && !matches(&["name~=^b"]));
        assert!(matches(&[r#"labels."a.b/c"=="v\x20\u0077""#]));
        assert!(matches(&["name == sha256:ab , parent"]));
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        let wrong =
            ["==", "name=", "name=x", "name==", "name==\"x", "a b", "name==/x/", "name==x,", "name~=(", "n\"\\q\""];
        for filter in wrong {
            assert!(Filters::parse(&[filter.to_owned()]).is_err(), "{filter}");
        }
        assert!(Filters::parse(&vec![String::new(); MOST + 1]).is_err());
        assert!(Filters::parse(&["a".repeat(LONGEST + 1)]).is_err());
    }
}
