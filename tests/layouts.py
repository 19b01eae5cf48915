"""Small folders of tiny images in the published layouts of the paper's four datasets."""

import hashlib

import numpy as np
from PIL import Image
from scipy.io import savemat

CLASSES = {  # in the protocol's order; the first three train
    "cub200": ["001.Black_footed_Albatross", "002.Laysan_Albatross", "009.Crow", "010.Gull", "011.Tern", "101.Wren"],
    "cars196": ["AM Hummer", "Acura RL", "Acura Integra", "BMW M3", "Ram C/V Cargo Van", "Audi A4"],
    "aircraft": ["707-320", "A380", "Cessna 525", "Cessna 560", "F/A-18", "de Havilland"],
    "inat_aves": [
        f"0{number}_Animalia_Chordata_Aves_Order_Family_Genus_{name}" for number, name in zip(range(3111, 3117), "abcdef", strict=True)
    ],
}
COUNTS = [2, 3, 2, 2, 2, 3]
LAYOUTS = {
    "cub200": ("cub200", "CUB_200_2011"),
    "cars196 (a)": ("cars196", "cars196"),
    "cars196 (b)": ("cars196", "stanford_cars"),
    "aircraft": ("aircraft", "fgvc-aircraft-2013b"),
    "inat_aves": ("inat_aves", "inat2021"),
    "inat_aves (torchvision)": ("inat_aves", "inat2021"),
}


def paint(path, seed=0, mode="RGB", size=(12, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, format="JPEG")


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def annotations(path, rows, **others):
    """Write a MATLAB structure array; numbers take the narrow types that MATLAB gives them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        array[0, place] = tuple(np.uint8(v) if isinstance(v, int) else v for v in row.values())
    savemat(path, {"annotations": array, **others})


def cells(names):
    array = np.empty((1, len(names)), dtype=object)
    array[0] = names
    return array


def write_cub(folder, names, labels):
    files = [f"{names[c]}/{names[c][4:].title()}_{90 - i}.jpg" for i, c in enumerate(labels)]  # not in order, other case
    write(folder / "images.txt", *(f"{i + 1} {file}" for i, file in enumerate(files)))
    identity = [int(name[:3]) for name in names]
    write(folder / "classes.txt", *(f"{identity[c]} {names[c]}" for c in reversed(range(len(names)))))
    order = reversed(range(len(files)))
    write(folder / "image_class_labels.txt", *(f"{i + 1} {identity[labels[i]]}" for i in order))
    write(folder / "train_test_split.txt", *(f"{i + 1} {i % 2}" for i in range(len(files))))
    for i, file in enumerate(files):
        paint(folder / "images" / file, i, "L" if i == 0 else "RGB")
    (folder / "images" / names[0] / "._Black.jpg").write_bytes(b"AppleDouble")


def write_cars_retrieval(folder, names, labels):
    order = np.random.default_rng(0).permutation(len(labels)).tolist()
    rows = [
        {"relative_im_path": f"car_ims/{k + 1:06d}.jpg", "bbox_x1": 1, "class": labels[i] + 1, "test": i % 2} for k, i in enumerate(order)
    ]
    annotations(folder / "cars_annos.mat", rows, class_names=cells(names))
    for k, i in enumerate(order):
        paint(folder / "car_ims" / f"{k + 1:06d}.jpg", i, "L" if i == 0 else "RGB")


def write_cars_devkit(folder, names, labels):
    savemat_folder = folder / "devkit"
    savemat_folder.mkdir(parents=True)
    savemat(savemat_folder / "cars_meta.mat", {"class_names": cells(names)})
    for part, file in (("cars_train", "devkit/cars_train_annos.mat"), ("cars_test", "cars_test_annos_withlabels.mat")):
        chosen = [i for i in range(len(labels)) if (i % 2 == 0) == (part == "cars_train")]
        rows = [{"bbox_x1": 1, "class": labels[i] + 1, "fname": f"{k + 1:05d}.jpg"} for k, i in enumerate(chosen)]
        annotations(folder / file, rows)
        for k, i in enumerate(chosen):
            paint(folder / part / f"{k + 1:05d}.jpg", i, "L" if i == 0 else "RGB")


def write_aircraft(folder, names, labels):
    data = folder / "data"
    write(data / "variants.txt", *sorted(names, key=str.lower))
    identities = [f"00{25794 - i}" for i in range(len(labels))]
    for part, first in (("trainval", 0), ("test", 1)):
        chosen = range(first, len(labels), 2)
        write(data / f"images_variant_{part}.txt", *(f"{identities[i]} {names[labels[i]]}" for i in chosen))
    for i, identity in enumerate(identities):
        paint(data / "images" / f"{identity}.jpg", i, "L" if i == 0 else "RGB")


def write_inat(folder, names, labels, parent="train_mini"):
    for i, c in enumerate(labels):
        paint(folder / parent / names[c] / f"{hashlib.md5(str(i).encode()).hexdigest()}.jpg", i, "L" if i == 0 else "RGB")
    paint(folder / parent / "02999_Animalia_Chordata_Amphibia_Anura_Hylidae_Hyla_avesi" / "0.jpg")
    (folder / parent / names[0] / "._0.jpg").write_bytes(b"AppleDouble")
    (folder / parent / f".{names[0]}").mkdir()


WRITERS = {
    "cub200": write_cub,
    "cars196 (a)": write_cars_retrieval,
    "cars196 (b)": write_cars_devkit,
    "aircraft": write_aircraft,
    "inat_aves": write_inat,
    "inat_aves (torchvision)": lambda *args: write_inat(*args, parent="2021_train_mini"),
}


def build(layout, data, counts=COUNTS):
    """Write a small dataset with `counts` images of each class and return its name and folder."""
    name, folder = LAYOUTS[layout]
    labels = [c for c, count in enumerate(counts) for _ in range(count)]
    WRITERS[layout](data / folder, CLASSES[name], labels)
    return name, data / folder
