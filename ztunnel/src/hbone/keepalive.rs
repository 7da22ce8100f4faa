//! PINGs that find dead peers (interop.md section 2.2).

use std::time::Duration;

use h2::{Ping, PingPong};

const INTERVAL: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(20);

/// Returns when the peer no longer answers.
pub(super) async fn until_dead(mut pings: PingPong) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        match tokio::time::timeout(DEADLINE, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
