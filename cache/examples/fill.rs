//! Fills a store for measurements: `fill DIR N_LAYERS RECORDS_A_LAYER MIB_A_LAYER`. The layers are as small as can be, and
//! said to be as large as wanted.

use std::path::Path;
use std::time::Duration;

use cache::{ContentDigest, Explanation, Key, NewRecord, Store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, n_layers, n_records, mebibytes] = &args[..] else {
        return Err("usage: fill DIR N_LAYERS RECORDS_A_LAYER MIB_A_LAYER".into());
    };
    let (n_layers, n_records, mebibytes): (u64, u64, u64) = (n_layers.parse()?, n_records.parse()?, mebibytes.parse()?);
    let store = Store::open(Path::new(dir))?;
    let mut parents = Vec::new();
    for number in 0..n_layers {
        let mut draft = store.new_tree()?;
        draft.set_size_bytes(mebibytes << 20);
        let layer = store.commit_tree(draft, ContentDigest(digest(number, 0)))?.layer;
        let record = |alternative| NewRecord {
            key: Key(digest(number, alternative + 1)),
            layer: layer.id.clone(),
            // As long as that of an ordinary step, and on a stack of layers.
            explanation: Some(Explanation {
                ingredients: format!(r#"[{{"name":"argv","value":"make -j8 {number} {}"}}]"#, "x".repeat(600)),
                layers: (number - number % 20..number).map(|below| ContentDigest(digest(below, 0))).collect(),
                n_base_layers: 1,
            }),
            name: format!("[stage {}/20] RUN make -j8 target-{number}", number % 20),
            slot: format!("slot-{}", number % (n_layers / 4 + 1)),
            cost: Duration::from_millis(number % 60_000),
        };
        let records: Vec<_> = (0..n_records).map(record).collect();
        store.put_records(&records, &parents)?;
        parents = vec![layer.id];
    }
    Ok(store.sync()?)
}

fn digest(number: u64, kind: u64) -> [u8; 32] {
    // Digests look random, and the database must not be spared that.
    *blake3::hash(&[number.to_le_bytes(), kind.to_le_bytes()].concat()).as_bytes()
}
