//! Connections: how many, for how long, encrypted or not, and how they end.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;

use crate::clock;
use crate::config::{LimitsSection, TlsSection};

use super::auth::Peer;

/// How long somebody may take nothing of what they asked for.
const STALL: Duration = Duration::from_secs(60);

/// How long answers that go on may take when the service ends.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// How long to wait when no connection can be taken: no file handle is left, mostly.
const BREATH: Duration = Duration::from_millis(100);

/// The most bytes of a request's head.
const MOST_HEAD: usize = 64 * 1_024;

/// A certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct TlsError {
    /// The file.
    path: String,
    /// What is wrong with it.
    why: String,
}

/// Reads the service's certificate; none where it has none.
///
/// # Errors
/// [`TlsError`] for a file that cannot be read, or is no certificate or key, or a key that is another's.
pub fn acceptor(tls: &TlsSection) -> Result<Option<TlsAcceptor>, TlsError> {
    let (Some(cert), Some(key)) = (&tls.cert, &tls.key) else { return Ok(None) };
    let failed =
        |path: &Path, why: &dyn std::fmt::Display| TlsError { path: path.display().to_string(), why: why.to_string() };
    let chain = CertificateDer::pem_file_iter(cert).map_err(|error| failed(cert, &error))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|error| failed(cert, &error))?;
    if chain.is_empty() {
        return Err(failed(cert, &"it has no certificate"));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(cert, &error))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| failed(key, &error))?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// Answers whoever connects, until `ending` says so; then what is being answered is finished.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: &LimitsSection,
    mut ending: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(usize::try_from(limits.connections).unwrap_or(usize::MAX >> 4)));
    let mut connections = JoinSet::new();
    let within = limits.request_time.0;
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            Some(_) = connections.join_next() => continue,
            _ = ending.wait_for(|ends| *ends) => break,
        };
        match accepted {
            Ok((stream, peer, place)) => {
                let (router, tls, ending) = (router.clone(), tls.clone(), ending.clone());
                connections.spawn(async move {
                    connection(stream, tls, router.layer(Extension(peer)), within, ending).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no connection can be taken");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_ANSWERS, all).await.is_err() {
        tracing::warn!("some answers are cut off");
    }
}

type Accepted = (TcpStream, Peer, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<Accepted> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, Peer(address), place))
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    within: Duration,
    ending: watch::Receiver<bool>,
) {
    // Answers are whole; waiting for more of them only delays events.
    let _ = stream.set_nodelay(true);
    match tls {
        None => answer(stream, router, within, ending).await,
        Some(tls) => match tokio::time::timeout(within, tls.accept(stream)).await {
            Ok(Ok(stream)) => answer(stream, router, within, ending).await,
            Ok(Err(error)) => tracing::debug!(%error, "no TLS"),
            Err(_) => tracing::debug!("TLS took too long"),
        },
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    router: Router,
    within: Duration,
    mut ending: watch::Receiver<bool>,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(within)
        .max_buf_size(MOST_HEAD)
        .serve_connection(TokioIo::new(Patient::new(stream, STALL)), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // What it gives is let go at once: it holds the value.
        () = async { let _ = ending.wait_for(|ends| *ends).await; } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// A stream whose other end has to take something within a time.
struct Patient<S> {
    stream: S,
    within: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn new(stream: S, within: Duration) -> Self {
        Self { stream, within, stalled: None }
    }

    /// The result of writing, or that the other end took nothing for too long.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let until = Instant::from_std(clock::now() + self.within);
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing of the answer is taken")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.bounded(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.bounded(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn who_takes_nothing_is_left() {
        let (here, there) = tokio::io::duplex(4);
        let mut patient = Patient::new(here, Duration::from_millis(20));
        let error = patient.write_all(b"more than fits").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(there);
    }

    fn pem(label: &str, bytes: &[u8]) -> String {
        let text = BASE64_STANDARD.encode(bytes);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    #[test]
    fn a_certificate_and_the_key_of_another_do_not_go_together() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let one = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let tls = TlsSection { cert: Some(cert.clone()), key: Some(key.clone()) };
        assert!(acceptor(&TlsSection::default()).unwrap().is_none());
        assert!(acceptor(&tls).is_err_and(|error| error.to_string().contains("cert.pem")));
        std::fs::write(&cert, pem("CERTIFICATE", one.cert.der())).unwrap();
        std::fs::write(&key, pem("PRIVATE KEY", &one.signing_key.serialize_der())).unwrap();
        assert!(acceptor(&tls).unwrap().is_some());
        std::fs::write(&key, pem("PRIVATE KEY", &other.signing_key.serialize_der())).unwrap();
        assert!(acceptor(&tls).is_err_and(|error| error.to_string().contains("key.pem")));
        std::fs::write(&cert, "no certificate").unwrap();
        assert!(acceptor(&tls).is_err_and(|error| error.to_string().contains("no certificate")));
    }
}
