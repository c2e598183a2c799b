//! Eight hours with publishers whose crystals are as far off as crystals are.

use callreel::testkit::sim::{self, Jitter, Loss, Network, Sender, World};

const HOURS: f64 = 8.0;

#[test]
fn eight_hours_end_where_they_should_and_no_frame_is_stretched_by_more_than_a_sample() {
    for (ppm, wander) in [(500.0, 0.0), (-500.0, 0.0), (300.0, 50.0)] {
        let sender = Sender { ppm, wander: (wander, 1200.0), ..Sender::default() };
        let network = Network {
            jitter: Jitter::Uniform(60.0),
            loss: Loss::Bernoulli(0.02),
            nack_rtt_ms: Some(80.0),
            ..Network::default()
        };
        let report = sim::run(&World::new(8, HOURS * 3600.0, vec![(sender, network)])).unwrap();
        let track = &report.tracks[0];
        let last = track.placed.last().unwrap();
        let converged = track.placed.iter().filter(|placed| placed.spoken > 10.0);
        let slew = converged.clone().map(|placed| placed.slewed.abs()).max().unwrap();
        let worst = converged.map(|placed| placed.error_ms.abs()).fold(0.0, f64::max);
        let skew = track.ledger.alignment.skew_ppm;
        println!(
            "{ppm:+} ppm ±{wander}: ends {:+.2} ms off, worst {worst:.2} ms, estimated {skew:.1} ppm",
            last.error_ms
        );
        assert!(last.error_ms.abs() <= 5.0 && worst <= 10.0);
        assert!(slew <= 1, "a frame is stretched by {slew} samples");
        assert_eq!(track.ledger.sums.lost + track.ledger.sums.concealed, 0);
    }
}
