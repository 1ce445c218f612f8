//! What Prometheus and load balancers read: `/metrics`, `/metrics/nodes`, `/healthz`, `/readyz`.

pub(crate) mod exposition;
pub(crate) mod families;
pub(crate) mod metrics;
pub(crate) mod nodes;
pub(crate) mod server;
pub(crate) mod source;
