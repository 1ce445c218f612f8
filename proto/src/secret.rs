//! How messages that carry a secret show themselves: without it.

use std::fmt;

use crate::{agent::v1::OperatorCode, operator::v1::LoginRequest};

impl fmt::Debug for LoginRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginRequest")
            .field("code_id", &self.code_id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for OperatorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorCode")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let secret = b"open sesame";
        let login = LoginRequest {
            code_id: b"id".to_vec().into(),
            code_secret: secret.to_vec().into(),
            ..LoginRequest::default()
        };
        let code = OperatorCode {
            id: b"id".to_vec().into(),
            secret: secret.to_vec().into(),
            ..OperatorCode::default()
        };
        for shown in [format!("{login:?}"), format!("{code:?}")] {
            assert!(shown.contains("id") && !shown.contains("sesame"), "{shown}");
        }
    }
}
