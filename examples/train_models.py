"""Train the demo's three models, and write the images they are measured on.

`digits_small` (int8) and `digits_large` (float32) read the same 8x8 digits, so
that a job can be answered cheaply and asked again where the answer is unsure.
`points` is about the smallest classifier that is still one: two numbers in, one
probability out.

The two digit models learn from the same 80 % of scikit-learn's digits. Nothing
is chosen or stopped by looking at the other 20 %, which is written as PNG files
and used only for the accuracies printed at the end. Those are measured on the
finished `.tflite` files, with the runtime that serves them. The small model's
width is chosen by cross-validation within the 80 %: the narrowest whose unsure
answers are few enough to be worth asking again.

All seeds are fixed: the same machine and the same package versions give the
same bytes. Another processor may round differently, and so give slightly
different models. The packages needed are those of the extra `train`.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from PIL import Image
from sklearn.datasets import load_digits, make_moons
from sklearn.model_selection import StratifiedKFold, train_test_split

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

SEED = 0
BATCH = 32
CLASSES = 10
# The small model: as narrow as this allows. With this share of its least sure
# answers corrected by somebody else, so many are to be right.
WIDTHS = (6, 8, 10, 12, 16)
ASKED_AGAIN = 0.25
RIGHT_THEN = 0.995
FOLDS = 5
SIGNATURE = "serving_default"
DEFAULT_OUT = Path(__file__).resolve().parent.parent / "agent" / "demo" / "data"


def split(labels: Labels) -> tuple[Labels, Labels]:
    """Give the indices to train on, and the fifth that is held out, in order."""
    every = np.arange(len(labels))
    train, held_out = train_test_split(every, test_size=0.2, stratify=labels, random_state=SEED)
    return train, np.sort(held_out)


def as_input(pixels: Pixels) -> Floats:
    """Turn grey images, shape (n, 8, 8), into what the digit models take."""
    return pixels.astype(np.float32)[..., np.newaxis] / np.float32(255)


def choose_width(images: Floats, labels: Labels) -> int:
    """Choose the small model's width by what is left wrong once the unsure are asked again."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    for width in WIDTHS:
        sure, right = np.zeros(len(labels)), np.zeros(len(labels), bool)
        for learned, unseen in folds.split(images, labels):
            model = train_small(images[learned], labels[learned], width)
            scores = model.predict(images[unseen], verbose=0)
            sure[unseen] = scores.max(axis=1)
            right[unseen] = scores.argmax(axis=1) == labels[unseen]
        kept = np.argsort(sure)[int(ASKED_AGAIN * len(labels)) :]
        then = 1 - float(np.mean(~right[kept])) * len(kept) / len(labels)
        again = f"{then:.2%} with {ASKED_AGAIN:.0%} asked again"
        print(f"{width} units: {right.mean():.2%} right alone, {again}")
        if then >= RIGHT_THEN:
            return width
    return WIDTHS[-1]


def train_small(images: Floats, labels: Labels, width: int) -> keras.Model:
    """Train one hidden layer: small, fast and now and then unsure."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            layers.Flatten(),
            layers.Dense(width, activation="relu"),
            layers.Dense(CLASSES, activation="softmax"),
        ],
    )
    model.compile(keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy")
    # Training for longer gains a point of accuracy, but pushes more confidences
    # close to 1, where they no longer tell a good answer from a bad one.
    model.fit(images, labels, batch_size=BATCH, epochs=20, verbose=0)
    return model


def convolution(width: int) -> list[keras.Layer]:
    """Give the layers of one normalised convolution."""
    return [
        layers.Conv2D(width, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
    ]


def train_large(images: Floats, labels: Labels) -> keras.Model:
    """Train a convolutional network on shifted, turned and scaled digits."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            *convolution(32),
            *convolution(32),
            layers.MaxPooling2D(),
            *convolution(64),
            *convolution(64),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(CLASSES, activation="softmax"),
        ],
    )
    # The distortions wrap the model, so that they are not exported with it.
    wrapped = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            layers.RandomTranslation(0.1, 0.1, fill_mode="constant"),
            layers.RandomRotation(0.04, fill_mode="constant"),
            layers.RandomZoom(0.1, 0.1, fill_mode="constant"),
            model,
        ],
    )
    epochs = 60
    steps = epochs * -(-len(images) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(0.002, steps)
    wrapped.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    wrapped.fit(images, labels, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def train_points(points: Floats, labels: Labels) -> keras.Model:
    """Train the two-input classifier."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential(
        [
            keras.Input(points.shape[1:]),
            # Keras's usual, smaller starting weights can get stuck close to a straight line.
            layers.Dense(10, activation="relu", kernel_initializer="he_normal"),
            layers.Dense(1, activation="sigmoid"),
        ],
    )
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    model.fit(points, labels, batch_size=BATCH, epochs=100, verbose=0)
    return model


def convert(model: keras.Model, names: tuple[str, str], calibration: Floats | None = None) -> bytes:
    """Convert a model to TFLite, for one input at a time.

    Args:
        model: The trained model.
        names: What the signature calls the input and the output.
        calibration: Inputs to measure value ranges on. When given, the whole
            model is made int8, its input and output too.

    Returns:
        The contents of the `.tflite` file.
    """
    source, target = names
    spec = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name=source)

    # Converting the Keras model directly would call the output "output_0" and
    # leave the batch size open.
    @tf.function(input_signature=[spec])
    def serve(value: tf.Tensor) -> dict[str, tf.Tensor]:
        return {target: model(value, training=False)}

    def samples() -> Iterator[dict[str, Floats]]:
        for row in calibration if calibration is not None else ():
            yield {source: row[np.newaxis]}

    # A plain tf.saved_model.save leaves the weights as variables, which the
    # calibration step cannot read. Keras's own archive does not.
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(SIGNATURE, serve)
    with tempfile.TemporaryDirectory() as folder:
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = samples
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.int8
            converter.inference_output_type = tf.int8
        return bytes(converter.convert())


def predict(path: Path, inputs: Floats) -> Floats:
    """Run a `.tflite` file over inputs, giving real numbers whatever its type."""
    run = Interpreter(model_path=str(path)).get_signature_runner(SIGNATURE)
    ((source, taken),) = run.get_input_details().items()
    ((target, given),) = run.get_output_details().items()
    if taken["dtype"] is np.int8:
        scale, zero = taken["quantization"]
        inputs = np.clip(np.rint(inputs / scale) + zero, -128, 127)
    inputs = inputs.astype(taken["dtype"])
    rows = [run(**{source: row[np.newaxis]})[target] for row in inputs]
    outputs = np.concatenate(rows)
    scale, zero = given["quantization"] if given["dtype"] is np.int8 else (1, 0)
    return (outputs.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def report(path: Path, inputs: Floats, labels: Labels) -> None:
    """Print a model's accuracy on held-out inputs, its size and its hash."""
    outputs = predict(path, inputs)
    # A single output is the probability of class 1.
    single = outputs.shape[1] == 1
    answers = np.rint(outputs[:, 0]) if single else outputs.argmax(axis=1)
    right = int((answers == labels).sum())
    contents = path.read_bytes()
    print(
        f"{path.name}: {right}/{len(labels)} right ({right / len(labels):.2%}), "
        f"{len(contents)} bytes, sha256 {hashlib.sha256(contents).hexdigest()}"
    )


def make_digits(out: Path) -> None:
    """Make the digit models, their labels and the held-out images."""
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    # The data set counts from 0 to 16. Rounding first to what a PNG holds makes
    # training see the very values that are served later.
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    train, held_out = split(labels)

    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:04d}-{labels[i]}.png" for i in held_out]
    for path, i in zip(paths, held_out, strict=True):
        Image.fromarray(pixels[i]).save(path)
    names = "".join(f"{i}\n" for i in range(CLASSES))
    (out / "digits.labels.txt").write_text(names, encoding="utf-8")

    small, large = out / "digits_small.tflite", out / "digits_large.tflite"
    seen, ends = as_input(pixels[train]), ("image", "scores")
    width = choose_width(seen, labels[train])
    small.write_bytes(convert(train_small(seen, labels[train], width), ends, seen))
    large.write_bytes(convert(train_large(seen, labels[train]), ends))

    # Read back from the files, because that is what a user of them will send.
    unseen = as_input(np.stack([np.asarray(Image.open(path)) for path in paths]))
    truth = np.array([int(path.stem[-1]) for path in paths])
    report(small, unseen, truth)
    report(large, unseen, truth)


def make_points(out: Path) -> None:
    """Make the two-input model."""
    points, labels = make_moons(n_samples=1000, noise=0.2, random_state=SEED)
    points = points.astype(np.float32)
    train, held_out = split(labels)
    path = out / "points.tflite"
    model = train_points(points[train], labels[train])
    path.write_bytes(convert(model, ("point", "probability")))
    report(path, points[held_out], labels[held_out])


def main(arguments: Sequence[str] | None = None) -> None:
    """Make every model, as the command line says."""
    parser = argparse.ArgumentParser(description="Train the demo's models.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to fill")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)

    # Sums are then taken in the same order whatever the number of cores.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    make_digits(out)
    make_points(out)


if __name__ == "__main__":
    main()
