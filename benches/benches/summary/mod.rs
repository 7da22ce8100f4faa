//! The table at the end of a run: medians, and HBONE beside direct TCP.

use std::fmt;
use std::time::Duration;

#[derive(Default)]
pub struct Summary {
    pub rows: Vec<Row>,
    /// Resident bytes of an idle connection at the client's node and at the server's.
    pub idle: Option<[f64; 2]>,
}

/// What one benchmark took, each time; empty where it was not run.
#[derive(Default)]
pub struct Row {
    pub title: String,
    /// Bytes that were moved each time, where that is what counts.
    pub bytes: Option<u64>,
    pub direct: Vec<Duration>,
    pub hbone: Vec<Duration>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<32} {:>14} {:>14} {:>14}", "MEDIANS OF THIS RUN", "DIRECT", "HBONE", "HBONE/DIRECT")?;
        for row in &self.rows {
            let (Some(direct), Some(hbone)) = (median(&row.direct), median(&row.hbone)) else { continue };
            let (shown, ratio) = match row.bytes {
                // A rate: more is better.
                Some(bytes) => {
                    let gigabits = |time: f64| format!("{:.2} Gbit/s", bytes as f64 * 8.0 / 1e9 / time);
                    ([gigabits(direct), gigabits(hbone)], direct / hbone)
                }
                // A time: less is better.
                None => ([direct, hbone].map(|time| format!("{:.0} µs", time * 1e6)), hbone / direct),
            };
            writeln!(f, "{:<32} {:>14} {:>14} {ratio:>13.2}x", row.title, shown[0], shown[1])?;
        }
        if let Some([client, server]) = self.idle.map(|ends| ends.map(|bytes| bytes / 1024.0)) {
            let title = "resident per idle connection";
            writeln!(f, "{title:<32} {client:.1} KiB at the client's node, {server:.1} KiB at the server's")?;
        }
        Ok(())
    }
}

/// In seconds.
fn median(times: &[Duration]) -> Option<f64> {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).map(Duration::as_secs_f64)
}
