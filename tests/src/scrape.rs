//! Pages of a port that speaks plain HTTP, asked for as a program that understands nothing more does.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::fault::{Fault, Outcome};

/// The page at this path.
pub async fn get(address: &str, path: &str) -> Outcome<String> {
    body(&answer(address, "GET", path).await?)
}

/// What the path answers when it is told to do something.
pub async fn post(address: &str, path: &str) -> Outcome<String> {
    body(&answer(address, "POST", path).await?)
}

/// Reads a page and forgets it: its bytes, and how long that took.
pub async fn drain(address: &str, path: &str) -> Outcome<(u64, Duration)> {
    let begun = Instant::now();
    let mut stream = ask(address, "GET", path).await?;
    let (mut bytes, mut piece) = (0, vec![0; 64 * 1024]);
    loop {
        match stream.read(&mut piece).await.map_err(Fault::io(address))? {
            0 => return Ok((bytes, begun.elapsed())),
            read => bytes += u64::try_from(read).unwrap_or(0),
        }
    }
}

async fn ask(address: &str, method: &str, path: &str) -> Outcome<TcpStream> {
    let mut stream = TcpStream::connect(address)
        .await
        .map_err(Fault::io(address))?;
    let request = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(Fault::io(address))?;
    Ok(stream)
}

async fn answer(address: &str, method: &str, path: &str) -> Outcome<String> {
    let mut stream = ask(address, method, path).await?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .await
        .map_err(Fault::io(address))?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn body(answer: &str) -> Outcome<String> {
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(Fault::new(answer)),
    }
}
