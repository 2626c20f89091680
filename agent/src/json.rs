//! JSON (RFC 8259) with whole numbers alone. Pure. What a schema does not name is refused.

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Bool(bool),
    Number(i64),
    Text(String),
    List(Vec<Value>),
    Object(Vec<(String, Value)>),
}

const DEPTH: usize = 16;

pub fn parse(bytes: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "got bytes that are not UTF-8".to_string())?;
    let mut parser = Parser {
        bytes: text.as_bytes(),
        at: 0,
    };
    let value = parser.value(0)?;
    parser.space();
    match parser.peek() {
        None => Ok(value),
        Some(_) => Err(parser.wrong("nothing more")),
    }
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn wrong(&self, expected: &str) -> String {
        format!("expected {expected} at byte {}", self.at)
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        self.space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, String> {
        if self.bytes[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            return Ok(value);
        }
        Err(self.wrong(word))
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > DEPTH {
            return Err(format!("got more than {DEPTH} levels"));
        }
        self.space();
        match self.peek() {
            Some(b'{') => {
                self.at += 1;
                let mut pairs: Vec<(String, Value)> = Vec::new();
                if self.take(b'}') {
                    return Ok(Value::Object(pairs));
                }
                loop {
                    self.space();
                    let key = self.text()?;
                    if pairs.iter().any(|(known, _)| *known == key) {
                        return Err(format!("got {key:?} twice"));
                    }
                    if !self.take(b':') {
                        return Err(self.wrong("':'"));
                    }
                    pairs.push((key, self.value(depth + 1)?));
                    if self.take(b'}') {
                        return Ok(Value::Object(pairs));
                    }
                    if !self.take(b',') {
                        return Err(self.wrong("',' or '}'"));
                    }
                }
            }
            Some(b'[') => {
                self.at += 1;
                let mut items = Vec::new();
                if self.take(b']') {
                    return Ok(Value::List(items));
                }
                loop {
                    items.push(self.value(depth + 1)?);
                    if self.take(b']') {
                        return Ok(Value::List(items));
                    }
                    if !self.take(b',') {
                        return Err(self.wrong("',' or ']'"));
                    }
                }
            }
            Some(b'"') => Ok(Value::Text(self.text()?)),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'n') => self.word("null", Value::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.wrong("a value")),
        }
    }

    fn number(&mut self) -> Result<Value, String> {
        let start = self.at;
        self.at += 1;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if matches!(self.peek(), Some(b'.' | b'e' | b'E')) {
            return Err(self.wrong("a whole number"));
        }
        let digits = std::str::from_utf8(&self.bytes[start..self.at]).unwrap_or_default();
        let plain = digits.trim_start_matches('-');
        if plain.len() > 1 && plain.starts_with('0') {
            return Err(self.wrong("a number without leading zeros"));
        }
        digits
            .parse()
            .map(Value::Number)
            .map_err(|_| self.wrong("a number of 64 bits"))
    }

    fn text(&mut self) -> Result<String, String> {
        if !self.take(b'"') {
            return Err(self.wrong("a string"));
        }
        let mut text = Vec::new();
        loop {
            let byte = self.peek().ok_or_else(|| self.wrong("the end of a string"))?;
            self.at += 1;
            match byte {
                b'"' => break,
                b'\\' => {
                    let escape = self.peek().ok_or_else(|| self.wrong("an escape"))?;
                    self.at += 1;
                    match escape {
                        b'"' | b'\\' | b'/' => text.push(escape),
                        b'b' => text.push(8),
                        b'f' => text.push(12),
                        b'n' => text.push(b'\n'),
                        b'r' => text.push(b'\r'),
                        b't' => text.push(b'\t'),
                        b'u' => {
                            let sign = self.escaped()?;
                            text.extend_from_slice(sign.encode_utf8(&mut [0; 4]).as_bytes());
                        }
                        _ => return Err(self.wrong("an escape of JSON")),
                    }
                }
                0..=31 => return Err(self.wrong("an escape instead of a control character")),
                _ => text.push(byte),
            }
        }
        String::from_utf8(text).map_err(|_| self.wrong("UTF-8"))
    }

    fn escaped(&mut self) -> Result<char, String> {
        let first = self.hex()?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first).ok_or_else(|| self.wrong("a whole surrogate pair"));
        }
        if self.bytes[self.at..].starts_with(b"\\u") {
            self.at += 2;
            let second = self.hex()?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return char::from_u32(code).ok_or_else(|| self.wrong("a character"));
            }
        }
        Err(self.wrong("a whole surrogate pair"))
    }

    fn hex(&mut self) -> Result<u32, String> {
        let digits = self
            .bytes
            .get(self.at..self.at + 4)
            .filter(|four| four.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.ok_or_else(|| self.wrong("four hexadecimal digits"))?;
        self.at += 4;
        u32::from_str_radix(std::str::from_utf8(digits).unwrap_or_default(), 16)
            .map_err(|_| self.wrong("digits"))
    }
}

impl Value {
    pub fn write(&self, out: &mut String) {
        match self {
            Value::Null => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Number(value) => out.push_str(&value.to_string()),
            Value::Text(value) => quote(value, out),
            Value::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Value::Object(pairs) => {
                out.push('{');
                for (index, (key, value)) in pairs.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    quote(key, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

fn quote(text: &str, out: &mut String) {
    out.push('"');
    for sign in text.chars() {
        match sign {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            sign if u32::from(sign) < 32 => out.push_str(&format!("\\u{:04x}", u32::from(sign))),
            sign => out.push(sign),
        }
    }
    out.push('"');
}

impl From<i64> for Value {
    fn from(value: i64) -> Value {
        Value::Number(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::Text(value.to_string())
    }
}

/// An object of these pairs.
pub fn object(pairs: &[(&str, Value)]) -> Value {
    Value::Object(
        pairs
            .iter()
            .map(|(key, value)| (key.to_string(), value.clone()))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(text: &str) -> String {
        let mut out = String::new();
        parse(text.as_bytes()).unwrap().write(&mut out);
        out
    }

    #[test]
    fn what_is_read_is_written_again() {
        let text = r#"{"a":[1,-2,null,true,false,"x\"\\é"],"b":{},"c":[]}"#;
        assert_eq!(round(text), text);
        assert_eq!(round(r#" [ "\u00e9\ud83d\ude00\n" ] "#), "[\"é😀\\u000a\"]");
    }

    #[test]
    fn what_is_no_json_of_ours_is_refused() {
        for text in [
            "",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "{\"a\":1,\"a\":2}",
            "1.5",
            "1e3",
            "01",
            "-",
            "tru",
            "\"\\x\"",
            "\"\\ud800\"",
            "\"\\u12\"",
            "[1] 2",
            "\"\n\"",
            "99999999999999999999",
            "{1:2}",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse(&[b'"', 0xff, b'"']).is_err());
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn changed_bytes_never_panic() {
        let text = br#"{"op":"exec","argv":["/bin/sh","-c","\u00e9\ud83d\ude00"],"n":[-12,{"a":null}]}"#;
        let mut seed = 99u64;
        for _ in 0..20_000 {
            let mut bytes = text.to_vec();
            for _ in 0..3 {
                seed = seed
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let at = (seed >> 33) as usize % bytes.len();
                bytes[at] = (seed >> 20) as u8;
            }
            if let Ok(value) = parse(&bytes) {
                let mut out = String::new();
                value.write(&mut out);
                assert_eq!(parse(out.as_bytes()), Ok(value));
            }
        }
    }
}
