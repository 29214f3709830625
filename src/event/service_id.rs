//! The name of a service revision, `<namespace>/<name>:<revision tag>`.
//!
//! It decides what runs, so it is validated strictly, in one pass over its bytes. (The regular
//! expression of the SDK takes exponential time on some texts.)

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

/// The longest revision tag, in bytes: the Docker tag format.
const TAG_LENGTH: usize = 128;

/// The unique identifier of a service revision (SRUID), borrowed.
///
/// It is always valid: parsing is the only way to make one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sruid<'a> {
    text: &'a str,
    slash: usize,
    colon: usize,
}

/// A [`Sruid`] that owns its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SruidBuf(String);

/// Why an SRUID is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SruidError {
    /// Nothing before a `/`, or no `/`.
    #[error("no namespace before a `/`")]
    NoNamespace,
    /// Nothing between the `/` and the `:`.
    #[error("no name after the `/`")]
    NoName,
    /// Nothing after a `:`, or no `:`.
    #[error("no revision tag after a `:`")]
    NoTag,
    /// Not `[a-z0-9]+(-[a-z0-9]+)*`.
    #[error("namespace and name must be lower kebab case")]
    NotKebab,
    /// Not the Docker tag format.
    #[error(
        "a revision tag must be 1 to 128 of letters, digits, `_`, `.` and `-`, \
         not starting with `.` or `-`"
    )]
    BadTag,
}

// === impl Sruid ===

impl<'a> Sruid<'a> {
    /// Parses an SRUID, in time linear in its length.
    pub fn parse(text: &'a str) -> Result<Self, SruidError> {
        let bytes = text.as_bytes();
        let slash = kebab(bytes, 0);
        match bytes.get(slash) {
            Some(b'/') if slash > 0 => {}
            None | Some(b'/') => return Err(SruidError::NoNamespace),
            Some(_) => return Err(SruidError::NotKebab),
        }
        let colon = kebab(bytes, slash + 1);
        match bytes.get(colon) {
            Some(b':') if colon > slash + 1 => {}
            Some(b':') => return Err(SruidError::NoName),
            None if colon == slash + 1 => return Err(SruidError::NoName),
            None => return Err(SruidError::NoTag),
            Some(_) => return Err(SruidError::NotKebab),
        }
        if bytes[slash - 1] == b'-' || bytes[colon - 1] == b'-' {
            return Err(SruidError::NotKebab);
        }
        tag(&bytes[colon + 1..])?;
        Ok(Self { text, slash, colon })
    }

    /// The whole text.
    pub fn as_str(&self) -> &'a str {
        self.text
    }

    /// The part before the `/`.
    pub fn namespace(&self) -> &'a str {
        &self.text[..self.slash]
    }

    /// The part between the `/` and the `:`.
    pub fn name(&self) -> &'a str {
        &self.text[self.slash + 1..self.colon]
    }

    /// `<namespace>/<name>`: the service without its revision.
    pub fn service(&self) -> &'a str {
        &self.text[..self.colon]
    }

    /// The part after the `:`.
    pub fn tag(&self) -> &'a str {
        &self.text[self.colon + 1..]
    }

    /// The name of the subscription that the SDK creates for a service on a laptop:
    /// `<namespace>.<name>.<tag, dots to dashes>`.
    pub fn subscription(&self) -> String {
        format!("{}.{}.{}", self.namespace(), self.name(), self.tag().replace('.', "-"))
    }

    /// A copy that owns its text.
    pub fn to_buf(&self) -> SruidBuf {
        SruidBuf(self.text.to_owned())
    }
}

/// The end of the kebab-case characters from `start`. A dash must follow a letter or a digit; the
/// caller checks that the last character is not a dash.
fn kebab(bytes: &[u8], start: usize) -> usize {
    let mut at = start;
    let mut after_letter = false;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => after_letter = true,
            b'-' if after_letter => after_letter = false,
            _ => break,
        }
        at += 1;
    }
    at
}

fn tag(bytes: &[u8]) -> Result<(), SruidError> {
    let Some((first, rest)) = bytes.split_first() else { return Err(SruidError::NoTag) };
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let fits = bytes.len() <= TAG_LENGTH
        && word(first)
        && rest.iter().all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
    if fits { Ok(()) } else { Err(SruidError::BadTag) }
}

impl fmt::Display for Sruid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

impl fmt::Debug for Sruid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

// === impl SruidBuf ===

impl SruidBuf {
    /// The borrowed form.
    pub fn as_sruid(&self) -> Sruid<'_> {
        Sruid::parse(&self.0).expect("it was parsed before")
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SruidBuf {
    type Err = SruidError;

    fn from_str(text: &str) -> Result<Self, SruidError> {
        Ok(Sruid::parse(text)?.to_buf())
    }
}

impl Borrow<str> for SruidBuf {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SruidBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SruidBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_sruid_has_three_parts() {
        let sruid = Sruid::parse("octue/wind-speed-2:0.1.2").unwrap();
        assert_eq!(
            (sruid.namespace(), sruid.name(), sruid.tag(), sruid.service()),
            ("octue", "wind-speed-2", "0.1.2", "octue/wind-speed-2")
        );
        assert_eq!(sruid.subscription(), "octue.wind-speed-2.0-1-2");
    }

    #[test]
    fn each_error_names_what_is_wrong() {
        let long = format!("a/b:{}", "t".repeat(129));
        for (text, error) in [
            ("", SruidError::NoNamespace),
            ("a", SruidError::NoNamespace),
            ("/b:c", SruidError::NoNamespace),
            ("a/:c", SruidError::NoName),
            ("a/", SruidError::NoName),
            ("a/b", SruidError::NoTag),
            ("a/b:", SruidError::NoTag),
            ("A/b:c", SruidError::NotKebab),
            ("a/b_c:d", SruidError::NotKebab),
            ("a-/b:c", SruidError::NotKebab),
            ("a/b-:c", SruidError::NotKebab),
            ("a--b/c:d", SruidError::NotKebab),
            ("-a/b:c", SruidError::NotKebab),
            ("a/b/c:d", SruidError::NotKebab),
            ("../b:c", SruidError::NotKebab),
            ("host.io/a/b:c", SruidError::NotKebab),
            ("a/b:.c", SruidError::BadTag),
            ("a/b:-c", SruidError::BadTag),
            ("a/b:c/d", SruidError::BadTag),
            ("a/b:c@sha256:0", SruidError::BadTag),
            ("a/b:é", SruidError::BadTag),
            ("a/b:c\n", SruidError::BadTag),
            (&long, SruidError::BadTag),
        ] {
            assert_eq!(Sruid::parse(text), Err(error), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_text_of_the_grammar_is_accepted(
            namespace in "[a-z0-9]{1,8}(-[a-z0-9]{1,8}){0,3}",
            name in "[a-z0-9]{1,8}(-[a-z0-9]{1,8}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}",
        ) {
            let text = format!("{namespace}/{name}:{tag}");
            let sruid = Sruid::parse(&text).unwrap();
            prop_assert_eq!((sruid.namespace(), sruid.name(), sruid.tag()), (&*namespace, &*name, &*tag));
            let owned = sruid.to_buf();
            prop_assert_eq!(owned.as_sruid(), sruid);
        }

        #[test]
        fn an_accepted_text_is_of_the_grammar(text in "[a-zA-Z0-9/:._ -]{0,24}") {
            if let Ok(sruid) = Sruid::parse(&text) {
                let (namespace, name, tag) = (sruid.namespace(), sruid.name(), sruid.tag());
                prop_assert_eq!(format!("{namespace}/{name}:{tag}"), &*text);
                for part in [sruid.namespace(), sruid.name()] {
                    prop_assert!(part.split('-').all(|word| !word.is_empty()
                        && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())));
                }
            }
        }
    }
}
