//! Traces for an OpenTelemetry collector (feature `otel`).
//!
//! | span | is |
//! |---|---|
//! | `connection` | a device's connection, from the upgrade to the last byte; its fields say how it ended |
//! | `handshake` | its beginning, up to the proof of the group key |
//! | `upstream connect` | reaching its chat server |
//! | `commit batch` | one transaction of the store, which answers many groups and so belongs to no connection |
//!
//! They are sent over gRPC, without TLS, to a collector nearby: `OTEL_EXPORTER_OTLP_ENDPOINT` says where, and without it
//! nothing is traced. TLS of its own would bring a second stack of it into the binary; what has to travel further is the
//! collector's affair. Spans carry what logs may carry, and no more ([`crate::log`]).

use miette::IntoDiagnostic as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, TracerProviderBuilder};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::log::SPANS;

/// Where the collector is.
const ENDPOINT: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Traces on their way. Dropping it sends what is left, which takes as long as the collector does, at most five seconds.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// To the collector the environment names; `None` when it names none. Has to be called inside the runtime.
    ///
    /// # Errors
    /// When the endpoint is none.
    pub fn from_environment() -> miette::Result<Option<Self>> {
        let Some(endpoint) = ENDPOINT.into_iter().find_map(std::env::var_os) else { return Ok(None) };
        let endpoint = endpoint.to_string_lossy();
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().into_diagnostic()?;
        Ok(Some(Self::new(SdkTracerProvider::builder().with_batch_exporter(exporter))))
    }

    /// To wherever the builder says.
    #[must_use]
    pub fn new(to: TracerProviderBuilder) -> Self {
        Self(to.with_resource(Resource::builder().with_service_name("heliostat").build()).build())
    }

    /// What turns spans into traces.
    #[must_use]
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + 'static
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("heliostat"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_filter(filter_fn(|metadata| metadata.target() == SPANS))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            eprintln!("the last traces were not sent: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::SpanData;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::group::record::{GroupRecord, Write};
    use crate::store::sqlite::SqliteStore;
    use crate::store::{Durability, Store as _};
    use crate::upstream::directory::{DirectoryConfig, Target};
    use crate::upstream::framer::Framing;
    use crate::upstream::{Directory, TcpDial, Upstream, UpstreamLimits};
    use crate::wire::d2m::{DeviceGroupId, ServerGroup};

    /// Keeps what would be sent.
    #[derive(Debug, Clone, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl opentelemetry_sdk::trace::SpanExporter for Kept {
        async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().append(&mut batch);
            Ok(())
        }
    }

    impl Kept {
        fn named(&self, name: &str) -> Vec<SpanData> {
            self.0.lock().unwrap().iter().filter(|span| span.name == name).cloned().collect()
        }
    }

    /// The one test of this process that listens to all of its threads: the writer has one of its own.
    #[tokio::test]
    async fn connections_commits_and_upstreams_are_traced_and_other_spans_are_not() {
        let kept = Kept::default();
        let traces = Traces::new(SdkTracerProvider::builder().with_simple_exporter(kept.clone()));
        let listening = tracing_subscriber::registry().with(traces.layer());
        tracing::subscriber::set_global_default(listening).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), Durability::Memory, 0).unwrap();
        let group = DeviceGroupId::new([7; 32]);
        store.commit(group, vec![Write::Group(GroupRecord::default())]).await.unwrap();
        store.close().await.unwrap();
        let batch = kept.named("commit batch");
        assert!(!batch.is_empty() && batch[0].attributes.iter().any(|it| it.key.as_str() == "commits"), "{batch:?}");

        let chat = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target { addresses: vec![chat.local_addr().unwrap().to_string()], framing: Framing::Raw };
        let directory = DirectoryConfig { default: Some(target), ..DirectoryConfig::default() };
        let target = Directory::new(directory).unwrap().find(&ServerGroup::new("a0").unwrap()).unwrap();
        let tracker = tokio_util::task::TaskTracker::new();
        {
            let connection = tracing::debug_span!(target: SPANS, "connection", group = %group);
            let _in = connection.enter();
            tracing::info_span!("no trace").in_scope(|| ());
            let cut = tokio_util::sync::CancellationToken::new();
            let upstream = Upstream::open(target, UpstreamLimits::default(), Arc::new(TcpDial), &tracker, &cut);
            tokio::task::spawn(async move {
                let _accepted = chat.accept().await.unwrap();
                cut.cancel();
                drop(upstream);
            });
        }
        tracker.close();
        tracker.wait().await;
        let (connection, connect) = (kept.named("connection"), kept.named("upstream connect"));
        assert_eq!((connection.len(), connect.len()), (1, 1));
        assert_eq!(connect[0].parent_span_id, connection[0].span_context.span_id());
        assert_eq!(kept.named("no trace").len(), 0);
        let said = format!("{:?}", kept.0.lock().unwrap());
        assert!(!said.contains(&hex::encode(group.as_bytes())), "{said}");
    }
}
