//! Reads files of environment variables: the `.env` of a service, and `--env-file`.

use std::io;

/// Why a file of variables was not read. The text of the line is left out: it may be a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DotenvError {
    /// A line is not a variable, or its variable cannot be passed to a process.
    #[error("line {0} is not `NAME=value`")]
    Line(usize),
    /// The file is not text.
    #[error("failed to read it as text")]
    Text(#[source] io::Error),
}

/// The variables of a file, in its order. A value may refer to other variables, as `$NAME`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<(String, String)>, DotenvError> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let variable = |item: dotenvy::Result<(String, String)>| match item {
        // Such a variable cannot be passed to a process.
        Ok((name, value)) if name.contains('\0') || value.contains('\0') => {
            Err(DotenvError::Line(line_of(bytes, "\0")))
        }
        Ok(variable) => Ok(variable),
        Err(dotenvy::Error::LineParse(text, _)) => Err(DotenvError::Line(line_of(bytes, &text))),
        Err(dotenvy::Error::Io(error)) => Err(DotenvError::Text(error)),
        Err(other) => Err(DotenvError::Text(io::Error::other(other))),
    };
    dotenvy::from_read_iter(bytes).map(variable).collect()
}

/// The number, from 1, of the first line that contains a text.
fn line_of(bytes: &[u8], text: &str) -> usize {
    let text = text.trim_end().as_bytes();
    let at = (0..bytes.len()).find(|&at| bytes[at..].starts_with(text)).unwrap_or(0);
    1 + bytes[..at].iter().filter(|&&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_in_order() {
        let variables = parse("\u{feff}# first\nA=1\nexport B='two words'\n".as_bytes()).unwrap();
        let expected = [("A", "1"), ("B", "two words")];
        assert_eq!(variables, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(parse(b"").unwrap().is_empty());
    }

    #[test]
    fn an_error_gives_the_line_and_not_its_text() {
        let message = parse(b"A=1\n\nno secret here\n").unwrap_err().to_string();
        assert_eq!(message, "line 3 is not `NAME=value`");
        assert!(matches!(parse(b"A=1\nB=x\0y\n"), Err(DotenvError::Line(2))));
        assert!(matches!(parse(b"A=\xff\n"), Err(DotenvError::Text(_))));
    }
}
