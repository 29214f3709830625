//! The parser of filters, by recursive descent. It reads each byte once or twice.

use super::{FilterError, Term};

/// The deepest nesting of parentheses: deeper than real filters, and safe for the stack.
const MAX_DEPTH: usize = 64;

/// How many characters of the text an error quotes.
const QUOTED: usize = 16;

/// Parses a whole filter, of any length.
pub(super) fn filter(text: &str) -> Result<Term, FilterError> {
    let mut parser = Parser { text, position: 0, depth: 0 };
    let root = parser.filter()?;
    match parser.rest() {
        "" => Ok(root),
        _ => Err(parser.unexpected("`AND`, `OR` or the end")),
    }
}

/// Whether a key may have this byte without quotes.
pub(super) fn is_bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

struct Parser<'a> {
    text: &'a str,
    /// Always at a boundary of characters, and after a token past all space.
    position: usize,
    depth: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operator {
    And,
    Or,
}

// === impl Parser ===

impl<'a> Parser<'a> {
    fn filter(&mut self) -> Result<Term, FilterError> {
        self.skip_space();
        let first = self.term()?;
        let Some(operator) = self.operator() else { return Ok(first) };

        let mut terms = vec![first, self.term()?];
        loop {
            let position = self.position;
            match self.operator() {
                None => break,
                Some(next) if next == operator => terms.push(self.term()?),
                Some(_) => return Err(FilterError::Mixed { position }),
            }
        }
        Ok(match operator {
            Operator::And => Term::All(terms),
            Operator::Or => Term::Any(terms),
        })
    }

    fn operator(&mut self) -> Option<Operator> {
        if self.word("AND") {
            Some(Operator::And)
        } else if self.word("OR") {
            Some(Operator::Or)
        } else {
            None
        }
    }

    fn term(&mut self) -> Result<Term, FilterError> {
        if self.word("NOT") || self.symbol("-") {
            return Ok(Term::Not(Box::new(self.unnegated_term()?)));
        }
        self.unnegated_term()
    }

    fn unnegated_term(&mut self) -> Result<Term, FilterError> {
        let position = self.position;
        if self.symbol("(") {
            return self.nested(position);
        }
        if self.word("hasPrefix") {
            return self.has_prefix();
        }
        if !self.word("attributes") {
            return Err(self.unexpected("`attributes`, `hasPrefix`, `NOT`, `-` or `(`"));
        }
        if self.symbol(":") {
            return Ok(Term::Has { key: self.key()? });
        }
        self.expect(".", "`:` or `.`")?;
        let key = self.key()?;
        if self.symbol("!=") {
            return Ok(Term::Differs { key, value: self.string()? });
        }
        self.expect("=", "`=` or `!=`")?;
        Ok(Term::Equals { key, value: self.string()? })
    }

    fn nested(&mut self, position: usize) -> Result<Term, FilterError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(FilterError::TooDeep { position });
        }
        let inner = self.filter()?;
        self.expect(")", "`AND`, `OR` or `)`")?;
        self.depth -= 1;
        Ok(inner)
    }

    fn has_prefix(&mut self) -> Result<Term, FilterError> {
        self.expect("(", "`(`")?;
        if !self.word("attributes") {
            return Err(self.unexpected("`attributes`"));
        }
        self.expect(".", "`.`")?;
        let key = self.key()?;
        self.expect(",", "`,`")?;
        let prefix = self.string()?;
        self.expect(")", "`)`")?;
        Ok(Term::HasPrefix { key, prefix })
    }

    fn key(&mut self) -> Result<String, FilterError> {
        if self.rest().starts_with('"') {
            return self.string();
        }
        let length = self.rest().bytes().take_while(|byte| is_bare(*byte)).count();
        if length == 0 {
            return Err(self.unexpected("the key of an attribute"));
        }
        let key = self.rest()[..length].to_owned();
        self.advance(length);
        Ok(key)
    }

    fn string(&mut self) -> Result<String, FilterError> {
        if !self.rest().starts_with('"') {
            return Err(self.unexpected("a string in double quotes"));
        }
        self.position += 1;
        let mut value = String::new();
        loop {
            let Some(letter) = self.rest().chars().next() else {
                return Err(self.unexpected("the closing `\"`"));
            };
            match letter {
                '"' => break,
                '\\' => value.push(self.escape()?),
                _ => {
                    self.position += letter.len_utf8();
                    value.push(letter);
                }
            }
        }
        self.advance(1);
        Ok(value)
    }

    /// Parses an escape sequence, from its backslash on.
    fn escape(&mut self) -> Result<char, FilterError> {
        let escape = FilterError::Escape { position: self.position };
        let rest = &self.rest()[1..];
        let Some(kind) = rest.chars().next() else { return Err(escape) };
        let (letter, length) = match kind {
            'a' => (Some('\x07'), 1),
            'b' => (Some('\x08'), 1),
            'f' => (Some('\x0c'), 1),
            'n' => (Some('\n'), 1),
            'r' => (Some('\r'), 1),
            't' => (Some('\t'), 1),
            'v' => (Some('\x0b'), 1),
            '\\' | '"' | '\'' | '`' | '?' => (Some(kind), 1),
            'x' | 'X' => (code_point(rest.get(1..3), 16), 3),
            'u' => (code_point(rest.get(1..5), 16), 5),
            'U' => (code_point(rest.get(1..9), 16), 9),
            '0'..='3' => (code_point(rest.get(0..3), 8), 3),
            _ => (None, 0),
        };
        let letter = letter.ok_or(escape)?;
        self.position += 1 + length;
        Ok(letter)
    }

    /// Reads a word that no character of a key follows.
    fn word(&mut self, word: &str) -> bool {
        let Some(after) = self.rest().strip_prefix(word) else { return false };
        if after.bytes().next().is_some_and(is_bare) {
            return false;
        }
        self.advance(word.len());
        true
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        if !self.rest().starts_with(symbol) {
            return false;
        }
        self.advance(symbol.len());
        true
    }

    fn expect(&mut self, symbol: &str, expected: &'static str) -> Result<(), FilterError> {
        if self.symbol(symbol) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    fn unexpected(&self, expected: &'static str) -> FilterError {
        let found = match self.rest() {
            "" => "the end".to_owned(),
            rest => format!("`{}`", rest.chars().take(QUOTED).collect::<String>()),
        };
        FilterError::Unexpected { position: self.position, expected, found }
    }

    fn advance(&mut self, length: usize) {
        self.position += length;
        self.skip_space();
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.position += rest.len() - rest.trim_ascii_start().len();
    }

    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }
}

/// The character of a code point in digits of `base`.
fn code_point(digits: Option<&str>, base: u32) -> Option<char> {
    let digits = digits?;
    let number = digits
        .chars()
        .try_fold(0_u32, |sum, digit| sum.checked_mul(base)?.checked_add(digit.to_digit(base)?))?;
    char::from_u32(number)
}
