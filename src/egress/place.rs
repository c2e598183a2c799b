use livekit_protocol as proto;
use livekit_protocol::egress_info::Request;

use super::upload::Target;

/// What is between a store's name and its address.
const AT: &str = "?endpoint=";

/// Where an egress writes its file: by this it is known where its answer never came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlace {
    /// The key, prefix included.
    pub path: String,
    /// The store without secrets, such as `s3://calls?endpoint=http://minio:9000`; empty where it is the service's own. None
    /// where nobody told.
    pub store: Option<String>,
}

impl FilePlace {
    /// Whether it is the same file as `other`, as far as both tell.
    pub fn is_same(&self, other: &Self) -> bool {
        let stores = self.store.as_deref().zip(other.store.as_deref());
        self.path == other.path && stores.is_none_or(|(one, other)| is_same_store(one, other))
    }

    /// The first file that was asked for.
    pub(super) fn asked(request: &Request) -> Option<Self> {
        use proto::{output, track_egress_request};
        let first = |files: &[proto::EncodedFileOutput]| {
            let file = files.first()?;
            Some(Self { path: file.filepath.clone(), store: Some(encoded_store(file.output.as_ref())) })
        };
        match request {
            Request::RoomComposite(request) => first(&request.file_outputs),
            Request::Web(request) => first(&request.file_outputs),
            Request::Participant(request) => first(&request.file_outputs),
            Request::TrackComposite(request) => first(&request.file_outputs),
            Request::Track(request) => match &request.output {
                Some(track_egress_request::Output::File(file)) => {
                    Some(Self { path: file.filepath.clone(), store: Some(direct_store(file.output.as_ref())) })
                }
                Some(track_egress_request::Output::WebsocketUrl(_)) | None => None,
            },
            Request::Egress(request) => request.outputs.iter().find_map(|output| match &output.config {
                Some(output::Config::File(file)) => Some(Self { path: file.filepath.clone(), store: None }),
                _ => None,
            }),
            Request::Replay(_) => None,
        }
    }
}

impl Target {
    /// The store's name.
    pub(super) fn store(&self) -> String {
        match self {
            Self::S3(s3) => of_s3(s3),
            Self::Azure(azure) => of_azure(azure),
            Self::Gcs(gcs) => of_gcs(gcs),
            Self::Oss(oss) => of_oss(oss),
            Self::Default => String::new(),
        }
    }
}

fn encoded_store(output: Option<&proto::encoded_file_output::Output>) -> String {
    use proto::encoded_file_output::Output;
    match output {
        Some(Output::S3(s3)) => of_s3(s3),
        Some(Output::Azure(azure)) => of_azure(azure),
        Some(Output::Gcp(gcs)) => of_gcs(gcs),
        Some(Output::AliOss(oss)) => of_oss(oss),
        None => String::new(),
    }
}

fn direct_store(output: Option<&proto::direct_file_output::Output>) -> String {
    use proto::direct_file_output::Output;
    match output {
        Some(Output::S3(s3)) => of_s3(s3),
        Some(Output::Azure(azure)) => of_azure(azure),
        Some(Output::Gcp(gcs)) => of_gcs(gcs),
        Some(Output::AliOss(oss)) => of_oss(oss),
        None => String::new(),
    }
}

fn of_s3(s3: &proto::S3Upload) -> String {
    named("s3", &s3.bucket, &s3.endpoint)
}

fn of_azure(azure: &proto::AzureBlobUpload) -> String {
    // The account's name counts as a secret, and may not come back.
    named("az", &azure.container_name, "")
}

fn of_gcs(gcs: &proto::GcpUpload) -> String {
    named("gs", &gcs.bucket, "")
}

fn of_oss(oss: &proto::AliOssUpload) -> String {
    named("oss", &oss.bucket, &oss.endpoint)
}

fn named(scheme: &str, bucket: &str, endpoint: &str) -> String {
    match endpoint.trim_end_matches('/') {
        "" => format!("{scheme}://{bucket}"),
        endpoint => format!("{scheme}://{bucket}{AT}{endpoint}"),
    }
}

fn is_same_store(one: &str, other: &str) -> bool {
    let parts = |store| str::split_once(store, AT).map_or((store, None), |(name, at)| (name, Some(at)));
    let ((one, one_at), (other, other_at)) = (parts(one), parts(other));
    one == other && one_at.zip(other_at).is_none_or(|(one, other)| one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_path_and_its_store() {
        let place = |store: Option<&str>| FilePlace { path: "a.ogg".into(), store: store.map(str::to_owned) };
        let at = named("s3", "calls", "http://a.example/");
        let ours = place(Some(&at));
        for same in [&at, "s3://calls"] {
            assert!(ours.is_same(&place(Some(same))), "{same}");
        }
        for other in ["s3://other?endpoint=http://a.example", "s3://calls?endpoint=http://b.example", "gs://calls", ""]
        {
            assert!(!ours.is_same(&place(Some(other))), "{other}");
        }
        assert!(ours.is_same(&place(None)), "nobody told");
        assert!(!ours.is_same(&FilePlace { path: "b.ogg".into(), ..ours.clone() }));
    }

    #[test]
    fn what_was_asked_for_is_what_comes_back() {
        let s3 = proto::S3Upload { bucket: "calls".into(), endpoint: "http://a.example".into(), ..Default::default() };
        let output = proto::EncodedFileOutput {
            filepath: "a.ogg".into(),
            output: Some(proto::encoded_file_output::Output::S3(s3.clone())),
            ..Default::default()
        };
        let request = proto::RoomCompositeEgressRequest { file_outputs: vec![output], ..Default::default() };
        let asked = FilePlace::asked(&Request::RoomComposite(request)).unwrap();
        assert_eq!(asked.store, Some(Target::S3(Box::new(s3)).store()));
    }
}
