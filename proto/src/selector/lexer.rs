//! Splits a label selector into its tokens.

use std::{iter::Peekable, str::Chars};

use super::SelectorError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(String),
    Equals,
    NotEquals,
    Bang,
    Comma,
    Open,
    Close,
    End,
}

/// A token and where it begins, in characters from 1.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    pub(super) token: Token,
    pub(super) position: usize,
}

impl Spot {
    /// The error that something else should have stood here.
    pub(super) fn expected(self, expected: &'static str) -> SelectorError {
        let found = match self.token {
            Token::Word(word) => format!("`{word}`"),
            Token::Equals => "`=`".to_owned(),
            Token::NotEquals => "`!=`".to_owned(),
            Token::Bang => "`!`".to_owned(),
            Token::Comma => "`,`".to_owned(),
            Token::Open => "`(`".to_owned(),
            Token::Close => "`)`".to_owned(),
            Token::End => "the end".to_owned(),
        };
        SelectorError::Expected {
            expected,
            found,
            position: self.position,
        }
    }
}

pub(super) struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    position: usize,
    ahead: Option<Spot>,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            chars: text.chars().peekable(),
            position: 1,
            ahead: None,
        }
    }

    /// The next token, left in place.
    pub(super) fn peek(&mut self) -> Result<Spot, SelectorError> {
        if let Some(spot) = &self.ahead {
            return Ok(spot.clone());
        }
        let spot = self.read()?;
        self.ahead = Some(spot.clone());
        Ok(spot)
    }

    /// The next token; [`Token::End`] again and again at the end.
    pub(super) fn next(&mut self) -> Result<Spot, SelectorError> {
        match self.ahead.take() {
            Some(spot) => Ok(spot),
            None => self.read(),
        }
    }

    fn read(&mut self) -> Result<Spot, SelectorError> {
        while self.chars.peek().is_some_and(|c| c.is_whitespace()) {
            self.bump();
        }
        let position = self.position;
        let Some(first) = self.chars.peek().copied() else {
            return Ok(Spot {
                token: Token::End,
                position,
            });
        };
        if !is_special(first) {
            return Ok(Spot {
                token: Token::Word(self.word()),
                position,
            });
        }
        self.bump();
        let followed = self.chars.peek() == Some(&'=');
        let token = match first {
            '=' => {
                self.bump_if(followed);
                Token::Equals
            }
            '!' => {
                self.bump_if(followed);
                if followed {
                    Token::NotEquals
                } else {
                    Token::Bang
                }
            }
            ',' => Token::Comma,
            '(' => Token::Open,
            ')' => Token::Close,
            operator => return Err(SelectorError::Comparison { operator, position }),
        };
        Ok(Spot { token, position })
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(c) = self.chars.peek().copied() {
            if is_special(c) || c.is_whitespace() {
                break;
            }
            word.push(c);
            self.bump();
        }
        word
    }

    fn bump(&mut self) {
        if self.chars.next().is_some() {
            self.position += 1;
        }
    }

    fn bump_if(&mut self, wanted: bool) {
        if wanted {
            self.bump();
        }
    }
}

fn is_special(c: char) -> bool {
    matches!(c, '=' | '!' | ',' | '(' | ')' | '<' | '>')
}
