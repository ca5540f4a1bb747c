"""Folders of data as people have them: a cloned data set repository, lines beside a README, a parquet image column."""

import io
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from zoo.data import open_data
from zoo.errors import DataError
from zoo.family.diffusion.captions import image_bytes

root = Path(tempfile.mkdtemp())
bad = []


def show(what, folder, expect):
    try:
        data = open_data(str(folder))
    except DataError as error:
        print("refused, which is no silent harm:", what, str(error)[:120])
        return
    first = {k: str(v)[-30:] for k, v in data[0].fields.items()}
    right = expect(data)
    bad.extend([] if right else [what])
    print(f"{'right' if right else 'WRONG'} {what}: {len(data)} records, the first {first} from {data[0].where[-28:]}")


repo = root / "repo"
(repo / "data").mkdir(parents=True)
(repo / "README.md").write_text("---\nlicense: mit\n---\n# A data set\n")
pq.write_table(pa.table({"text": ["alpha beta gamma"] * 50}), repo / "data" / "train-00000-of-00001.parquet")
show("repository: README.md + 50 rows of parquet", repo, lambda d: len(d) == 50)
lines = root / "lines"
lines.mkdir()
(lines / "README.md").write_text("about")
(lines / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
show("folder: README.md + train.jsonl of 2 rows", lines, lambda d: len(d) == 2)
png = io.BytesIO()
Image.new("RGB", (8, 8)).save(png, "PNG")
pq.write_table(pa.table({"text": ["a"], "image": [{"bytes": png.getvalue(), "path": "x.png"}]}), root / "i.parquet")
try:
    image_bytes(open_data(str(root / "i.parquet"))[0].fields["image"], (3, 8, 8), "i.parquet:1")
    print("right parquet image column {bytes, path}")
except Exception as e:
    bad.append("parquet image")
    print("WRONG parquet image column {bytes, path}:", str(e)[:120])
print("FAILS" if bad else "fine", bad)
sys.exit(bool(bad))
