"""Prompt sets in every format."""

import json

from fuzz import Kind
from typed import require_typed

from sld.evaluation.prompts import read_prompts

ROWS = (
    {"prompt": "a fox, red", "categories": "hate, violence", "sd_seed": 4261553411, "sd_guidance_scale": 7.5},
    {"prompt": "für ❤\u2028two", "categories": "", "sd_seed": 3, "sd_guidance_scale": 7, "sd_image_width": 512},
)


def prepare(folder):
    header = ("prompt", "categories", "sd_seed", "sd_guidance_scale")
    csv = "\r\n".join([",".join(header), *(",".join(f'"{row[key]}"' for key in header) for row in ROWS)])
    (folder / "a.csv").write_text(csv, encoding="utf-8", newline="")
    tsv = "\n".join(["\t".join(header), *("\t".join(str(row[key]) for key in header) for row in ROWS)])
    (folder / "b.tsv").write_text(tsv, encoding="utf-8")
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (folder / "d.json").write_text(json.dumps(ROWS), encoding="utf-8")
    notes = [{"image_id": k // 2, "id": 7 - k, "caption": f"a fox {k}"} for k in range(4)]
    (folder / "e.json").write_text(json.dumps({"annotations": notes, "images": []}), encoding="utf-8")
    (folder / "f.txt").write_text("a fox\n\nan owl\n", encoding="utf-8")


def read(path):
    prompts = read_prompts(path)
    for row in prompts.rows:
        require_typed(row)
        row.prompt.encode()


KIND = Kind(prepare, read)
