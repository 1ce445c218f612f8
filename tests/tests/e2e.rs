//! The real programs, together.

#[path = "e2e/command_line.rs"]
mod command_line;
