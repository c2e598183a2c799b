//! What we must know of the server's offers, and what must be changed in them before str0m may see them.
//!
//! The server offers in the shape of a browser that sends and receives, with its audio routed by `a=ssrc` (RFC 5576)
//! and named by `a=msid` (RFC 8830): the media sections carry no `mid` header extension.

use std::collections::HashMap;

/// One media section of an offer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Section {
    /// `audio`, `video` or `application`.
    pub(super) kind: String,
    /// The section's `a=mid`.
    pub(super) mid: String,
    /// The track (`TR_…`) its `a=msid` names.
    pub(super) track: Option<String>,
    /// The streams it announces, in order.
    pub(super) ssrcs: Vec<u32>,
}

/// An offer, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Offer {
    /// Its media sections, in order.
    pub(super) sections: Vec<Section>,
    /// The candidates it carries, each as the value of its `a=candidate` line (`candidate:…`).
    pub(super) candidates: Vec<String>,
    /// The server's ICE user name: a new one restarts ICE (RFC 8839 §4.4.1).
    pub(super) ufrag: Option<String>,
    /// The offer as str0m may see it.
    pub(super) munged: String,
}

/// Takes an offer apart.
///
/// The text for str0m differs from the server's in three ways:
/// * `b=` lines are gone: str0m refuses two of them in one section;
/// * in audio and video sections `sendrecv` is `sendonly` and `recvonly` is `inactive`: else the answer would claim
///   that we send;
/// * candidates are gone: the caller adds them when it has a local address that reaches them.
pub(super) fn parse_offer(sdp: &str) -> Offer {
    let mut offer = Offer { munged: String::with_capacity(sdp.len()), ..Offer::default() };
    for line in sdp.lines() {
        let line = line.trim_end_matches('\r');
        if let Some(media) = line.strip_prefix("m=") {
            let kind = media.split(' ').next().unwrap_or_default().to_owned();
            offer.sections.push(Section { kind, ..Section::default() });
        }
        if line.is_empty() || line.starts_with("b=") || line == "a=end-of-candidates" {
            continue;
        }
        if let Some(ufrag) = line.strip_prefix("a=ice-ufrag:") {
            offer.ufrag.get_or_insert_with(|| ufrag.trim().to_owned());
        }
        if let Some(candidate) = line.strip_prefix("a=").filter(|value| value.starts_with("candidate:")) {
            offer.candidates.push(candidate.to_owned());
            continue;
        }
        let mut kept = line;
        if let Some(section) = offer.sections.last_mut() {
            section.note(line);
            if section.kind == "audio" || section.kind == "video" {
                kept = one_way(line);
            }
        }
        offer.munged.push_str(kept);
        offer.munged.push_str("\r\n");
    }
    offer.candidates.sort_unstable();
    offer.candidates.dedup();
    offer
}

impl Offer {
    /// The audio streams announced, each with its track: by the server's own table where it sent one, else by the
    /// section's `a=msid`. A re-used section keeps its mid and gets a new stream and a new track.
    pub(super) fn streams(&self, mid_to_track: &HashMap<String, String>) -> Vec<(u32, String)> {
        let audio = self.sections.iter().filter(|section| section.kind == "audio");
        let named = audio.filter_map(|section| {
            let track = mid_to_track.get(&section.mid).or(section.track.as_ref())?;
            Some(section.ssrcs.iter().map(move |ssrc| (*ssrc, track.clone())))
        });
        named.flatten().collect()
    }
}

impl Section {
    fn note(&mut self, line: &str) {
        if let Some(mid) = line.strip_prefix("a=mid:") {
            self.mid = mid.trim().to_owned();
        } else if let Some(ids) = line.strip_prefix("a=msid:") {
            self.track = ids.split_whitespace().nth(1).map(str::to_owned);
        } else if let Some(ssrc) = line.strip_prefix("a=ssrc:") {
            let number = ssrc.split_whitespace().next().and_then(|number| number.parse().ok());
            if let Some(ssrc) = number.filter(|ssrc| !self.ssrcs.contains(ssrc)) {
                self.ssrcs.push(ssrc);
            }
        }
    }
}

fn one_way(line: &str) -> &str {
    match line {
        "a=sendrecv" => "a=sendonly",
        "a=recvonly" => "a=inactive",
        other => other,
    }
}

/// The `candidate:…` value of a trickled candidate (RFC 8840 §4.1 as JSON, the way browsers write it); `None` for the
/// end-of-candidates mark and for anything else that names no address.
pub(super) fn trickled_candidate(json: &str) -> Option<String> {
    let init: serde_json::Value = serde_json::from_str(json).ok()?;
    let candidate = init.get("candidate")?.as_str()?.trim();
    let candidate = candidate.strip_prefix("a=").unwrap_or(candidate);
    candidate.starts_with("candidate:").then(|| candidate.to_owned())
}

/// A candidate of ours in the form that [`trickled_candidate`] reads.
pub(super) fn candidate_init(candidate: &str) -> String {
    let candidate = candidate.strip_prefix("a=").unwrap_or(candidate);
    serde_json::json!({ "candidate": candidate, "sdpMid": "0", "sdpMLineIndex": 0 }).to_string()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What livekit-server sends once one audio track is subscribed, with lines added that real servers have sent.
    pub(in super::super) const OFFER: &str = "v=0\r\n\
        o=- 4215775240449105457 1 IN IP4 0.0.0.0\r\n\
        s=-\r\n\
        t=0 0\r\n\
        a=msid-semantic:WMS *\r\n\
        a=fingerprint:sha-256 0F:74:31:25:CB:A2:13:EC:28:6F:6D:2C:61:FF:5D:C2:BC:B9:DB:3D:98:14:8D:1A:BB:EA:33:0C:A4:60:A8:8E\r\n\
        a=ice-lite\r\n\
        a=extmap-allow-mixed\r\n\
        a=group:BUNDLE 0 1\r\n\
        m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n\
        c=IN IP4 0.0.0.0\r\n\
        a=setup:actpass\r\n\
        a=mid:0\r\n\
        a=sendrecv\r\n\
        a=sctp-port:5000\r\n\
        a=max-message-size:65535\r\n\
        a=ice-ufrag:UvmSFUzqqXBNtpzB\r\n\
        a=ice-pwd:gsUxwnsVCsuMxNFYDJxsXWfiSDrmLnbE\r\n\
        a=candidate:1 1 udp 2130706431 127.0.0.1 7882 typ host\r\n\
        a=candidate:1 2 udp 2130706431 127.0.0.1 7882 typ host\r\n\
        a=candidate:2 1 tcp 1671430143 127.0.0.1 7881 typ host tcptype passive\r\n\
        a=end-of-candidates\r\n\
        m=audio 9 UDP/TLS/RTP/SAVPF 111 63\r\n\
        c=IN IP4 0.0.0.0\r\n\
        b=AS:40\r\n\
        b=TIAS:40000\r\n\
        a=setup:actpass\r\n\
        a=mid:1\r\n\
        a=ice-ufrag:UvmSFUzqqXBNtpzB\r\n\
        a=ice-pwd:gsUxwnsVCsuMxNFYDJxsXWfiSDrmLnbE\r\n\
        a=rtcp-mux\r\n\
        a=rtcp-rsize\r\n\
        a=rtpmap:111 opus/48000/2\r\n\
        a=fmtp:111 minptime=10;useinbandfec=1\r\n\
        a=rtcp-fb:111 nack\r\n\
        a=rtpmap:63 red/48000/2\r\n\
        a=fmtp:63 111/111\r\n\
        a=ssrc:2485877649 cname:PA_ann|TR_voice\r\n\
        a=ssrc:2485877649 msid:PA_ann|TR_voice TR_voice\r\n\
        a=msid:PA_ann|TR_voice TR_voice\r\n\
        a=sendrecv\r\n";

    #[test]
    fn sections_are_read_with_their_streams() {
        let offer = parse_offer(OFFER);
        let kinds: Vec<_> = offer.sections.iter().map(|section| section.kind.as_str()).collect();
        assert_eq!(kinds, ["application", "audio"]);
        assert_eq!(offer.ufrag.as_deref(), Some("UvmSFUzqqXBNtpzB"));
        assert_eq!(offer.streams(&HashMap::new()), [(2_485_877_649, "TR_voice".to_owned())]);
    }

    #[test]
    fn the_servers_table_wins_over_the_text() {
        let table = HashMap::from([("1".to_owned(), "TR_new".to_owned()), ("0".to_owned(), "TR_no".to_owned())]);
        assert_eq!(parse_offer(OFFER).streams(&table), [(2_485_877_649, "TR_new".to_owned())]);
    }

    #[test]
    fn the_munged_offer_sends_one_way_and_has_no_bandwidth_or_candidates() {
        let offer = parse_offer(OFFER);
        let audio = &offer.munged[offer.munged.find("m=audio").unwrap()..];
        assert!(audio.contains("a=sendonly\r\n") && !audio.contains("a=sendrecv"));
        assert!(!offer.munged.contains("b=") && !offer.munged.contains("candidate"));
        // The data channel's section is not ours to change.
        assert!(offer.munged[..offer.munged.find("m=audio").unwrap()].contains("a=sendrecv\r\n"));
        assert_eq!(offer.candidates.len(), 3);
    }

    #[test]
    fn a_freed_section_becomes_inactive() {
        let freed = OFFER.replace("a=sendrecv", "a=recvonly").replace("a=msid:PA_ann|TR_voice TR_voice\r\n", "");
        let audio = parse_offer(&freed).munged;
        assert!(audio.contains("a=inactive\r\n"));
    }

    #[test]
    fn trickled_candidates_survive_the_way_there_and_back() {
        let line = "candidate:1 1 udp 2130706431 127.0.0.1 7882 typ host";
        assert_eq!(trickled_candidate(&candidate_init(line)).as_deref(), Some(line));
        assert_eq!(trickled_candidate(&candidate_init(&format!("a={line}"))).as_deref(), Some(line));
        for nothing in ["", "{}", "[]", "null", r#"{"candidate":""}"#, r#"{"candidate":5}"#, "{\"candidate\""] {
            assert_eq!(trickled_candidate(nothing), None, "{nothing}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart_without_harm(text in "(?s).{0,400}", line in "[ambcost]=[a-z0-9: \u{e9}]{0,30}") {
            let offer = parse_offer(&format!("{text}\r\n{line}\nm=audio\r\n{line}"));
            prop_assert!(!offer.munged.contains("\na=candidate:"));
            let _ = trickled_candidate(&text);
        }
    }
}
