"""Draw the embedded sample from all 60,000 images of CIFAR-10 stored as JPEG.

    python -m nas.samples.make_cifar10 ../shared/data/cifar10_jpeg.npz nas/samples/cifar10.npz

800 training and 200 test images of each class, drawn with a fixed seed from the official
training and test parts; the JPEG bytes are copied, not encoded again. The same input gives the
same arrays, bit for bit, and from Python 3.11.4 on, which marks large zip archives otherwise than
before, the same file: the SHA-256 printed is `SAMPLE_SHA256` in `nas/data.py`.

The arrays of the output:
    jpeg     uint8 [bytes]    10,000 JPEG files one after another
    sizes    uint16 [10000]   bytes of each
    labels   uint8 [10000]
    index    uint16 [10000]   row of the input: below 50,000 is official training, above is test
    n_train  int64 []         8,000; the images after that many are the test part
"""

import argparse
import hashlib
import io
import os
from pathlib import Path

import numpy as np

from nas.data import balanced_rows

N_OFFICIAL_TRAIN = 50_000
N_TRAIN, N_TEST = 8_000, 2_000
SEED = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shared_npz", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    with np.load(args.shared_npz, allow_pickle=False) as pack:
        jpeg, sizes, labels = pack["jpeg"], pack["sizes"], pack["labels"]
    index = np.concatenate(
        [
            balanced_rows(labels[:N_OFFICIAL_TRAIN], N_TRAIN, SEED),
            N_OFFICIAL_TRAIN + balanced_rows(labels[N_OFFICIAL_TRAIN:], N_TEST, SEED),
        ]
    )
    ends = np.cumsum(sizes, dtype=np.int64)
    content = io.BytesIO()
    np.savez(  # not compressed: JPEG does not shrink, and the bytes then depend on no zlib
        content,
        jpeg=np.concatenate([jpeg[ends[i] - sizes[i] : ends[i]] for i in index]),
        sizes=sizes[index],
        labels=labels[index],
        index=index.astype(np.uint16),
        n_train=np.int64(N_TRAIN),
    )
    partial = args.out.with_name(args.out.name + ".part")
    partial.write_bytes(content.getvalue())
    os.replace(partial, args.out)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    print(f"{args.out}: {content.tell()} bytes, SHA-256 {digest}")


if __name__ == "__main__":
    main()
