//! Typed fields of a JSON object: each is taken once, and what is left over is refused. Pure.

use crate::json::{object, Value};

/// Why a request was not done; `field` is the name in the request or in the policy.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: &'static str,
    pub field: String,
    pub message: String,
}

impl Refusal {
    pub fn invalid(field: &str, message: impl Into<String>) -> Refusal {
        Refusal {
            code: "invalid",
            field: field.to_string(),
            message: message.into(),
        }
    }

    pub fn denied(field: &str, message: impl Into<String>) -> Refusal {
        Refusal {
            code: "denied",
            field: field.to_string(),
            message: message.into(),
        }
    }

    pub fn not_found(field: &str, message: impl Into<String>) -> Refusal {
        Refusal {
            code: "not_found",
            field: field.to_string(),
            message: message.into(),
        }
    }

    /// What the system answered to an attempt to do `what`.
    pub fn system(what: &str, error: &std::io::Error) -> Refusal {
        use std::io::ErrorKind::{NotFound, PermissionDenied};
        let code = match error.kind() {
            NotFound => "not_found",
            PermissionDenied => "denied",
            _ => "unavailable",
        };
        Refusal {
            code,
            field: String::new(),
            message: format!("{what}: {error}"),
        }
    }

    pub fn to_json(&self) -> String {
        let mut out = String::new();
        object(&[
            ("code", self.code.into()),
            ("field", self.field.as_str().into()),
            ("message", self.message.as_str().into()),
        ])
        .write(&mut out);
        out
    }
}

pub struct Fields {
    pairs: Vec<(String, Value)>,
    path: String,
}

impl Fields {
    pub fn of(value: Value, path: &str) -> Result<Fields, Refusal> {
        match value {
            Value::Object(pairs) => Ok(Fields {
                pairs,
                path: path.to_string(),
            }),
            _ => Err(Refusal::invalid(path, "expected an object")),
        }
    }

    pub fn parse(bytes: &[u8], path: &str) -> Result<Fields, Refusal> {
        let value = crate::json::parse(bytes).map_err(|error| Refusal::invalid(path, error))?;
        Fields::of(value, path)
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_string()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn wrong(&self, key: &str, expected: &str) -> Refusal {
        Refusal::invalid(&self.name(key), format!("expected {expected}"))
    }

    /// The field, `None` where it is absent or null.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        let at = self.pairs.iter().position(|(known, _)| known == key)?;
        match self.pairs.swap_remove(at).1 {
            Value::Null => None,
            value => Some(value),
        }
    }

    pub fn text(&mut self, key: &str) -> Result<Option<String>, Refusal> {
        match self.take(key) {
            None => Ok(None),
            // A NUL would cut the text short where it is handed to the kernel.
            Some(Value::Text(text)) if !text.contains('\0') => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a string without NUL")),
        }
    }

    pub fn needed_text(&mut self, key: &str) -> Result<String, Refusal> {
        self.text(key)?.ok_or_else(|| self.wrong(key, "a string"))
    }

    pub fn number(&mut self, key: &str, least: i64, most: i64) -> Result<Option<i64>, Refusal> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Number(number)) if (least..=most).contains(&number) => Ok(Some(number)),
            Some(_) => Err(self.wrong(key, &format!("a whole number from {least} to {most}"))),
        }
    }

    pub fn needed_number(&mut self, key: &str, least: i64, most: i64) -> Result<i64, Refusal> {
        self.number(key, least, most)?
            .ok_or_else(|| self.wrong(key, &format!("a whole number from {least} to {most}")))
    }

    pub fn flag(&mut self, key: &str, otherwise: bool) -> Result<bool, Refusal> {
        match self.take(key) {
            None => Ok(otherwise),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    pub fn texts(&mut self, key: &str) -> Result<Vec<String>, Refusal> {
        let list = match self.take(key) {
            None => return Ok(Vec::new()),
            Some(Value::List(list)) => list,
            Some(_) => return Err(self.wrong(key, "a list of strings")),
        };
        let mut texts = Vec::with_capacity(list.len());
        for item in list {
            match item {
                Value::Text(text) if !text.contains('\0') => texts.push(text),
                _ => return Err(self.wrong(key, "a list of strings without NUL")),
            }
        }
        Ok(texts)
    }

    pub fn numbers(&mut self, key: &str, most: i64) -> Result<Vec<i64>, Refusal> {
        let list = match self.take(key) {
            None => return Ok(Vec::new()),
            Some(Value::List(list)) => list,
            Some(_) => return Err(self.wrong(key, "a list of numbers")),
        };
        let mut numbers = Vec::with_capacity(list.len());
        for item in list {
            match item {
                Value::Number(number) if (0..=most).contains(&number) => numbers.push(number),
                _ => return Err(self.wrong(key, &format!("a list of numbers from 0 to {most}"))),
            }
        }
        Ok(numbers)
    }

    pub fn object(&mut self, key: &str) -> Result<Option<Fields>, Refusal> {
        let name = self.name(key);
        self.take(key).map(|value| Fields::of(value, &name)).transpose()
    }

    pub fn objects(&mut self, key: &str) -> Result<Vec<Fields>, Refusal> {
        let name = self.name(key);
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::List(list)) => list.into_iter().map(|item| Fields::of(item, &name)).collect(),
            Some(_) => Err(self.wrong(key, "a list of objects")),
        }
    }

    /// Every name with its string.
    pub fn into_texts(self) -> Result<Vec<(String, String)>, Refusal> {
        let path = self.path;
        self.pairs
            .into_iter()
            .map(|(key, value)| match value {
                Value::Text(text)
                    if !text.contains('\0') && !key.is_empty() && !key.contains(['=', '\0']) =>
                {
                    Ok((key, text))
                }
                _ => Err(Refusal::invalid(
                    &format!("{path}.{key}"),
                    "expected a name and a string",
                )),
            })
            .collect()
    }

    pub fn done(self) -> Result<(), Refusal> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => Err(Refusal::invalid(&self.name(key), "no such field")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_field_is_named() {
        let mut fields = Fields::parse(br#"{"a":"x","n":70,"t":[1]}"#, "exec").unwrap();
        assert_eq!(fields.text("a"), Ok(Some("x".into())));
        assert_eq!(fields.number("n", 1, 64).unwrap_err().field, "exec.n");
        assert_eq!(fields.texts("t").unwrap_err().field, "exec.t");
        assert_eq!(fields.needed_text("missing").unwrap_err().field, "exec.missing");
    }

    #[test]
    fn what_nobody_took_is_refused() {
        let fields = Fields::parse(br#"{"comands":["*"]}"#, "exec").unwrap();
        assert_eq!(fields.done().unwrap_err().field, "exec.comands");
    }

    #[test]
    fn a_string_with_nul_is_refused() {
        let mut fields = Fields::parse(br#"{"path":"/tmp\u0000/etc"}"#, "").unwrap();
        assert_eq!(fields.text("path").unwrap_err().field, "path");
    }
}
