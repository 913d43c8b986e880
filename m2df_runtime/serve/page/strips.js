/* Pictures of clips: a strip of frames, of which one is shown, and all in turn while it is pointed at. */

import { make } from "./dom.js";

const known = new Map(); // key of a strip to the address of its picture

/** A picture of a strip that `load` gives as a blob; it is asked for once for each key. */
export function strip(key, load, alt) {
  const picture = make("img", { class: "strip", alt, width: 96, height: 96 });
  picture.addEventListener("load", () => {
    const frames = Math.max(1, Math.round(picture.naturalWidth / picture.naturalHeight));
    picture.style.setProperty("--frames", frames);
    picture.style.setProperty("--still", frames > 1 ? Math.floor(frames / 2) / (frames - 1) : 0);
  });
  if (!known.has(key)) known.set(key, load().then((blob) => URL.createObjectURL(blob)));
  known.get(key).then(
    (address) => (picture.src = address),
    () => known.delete(key),
  );
  return picture;
}

/** A strip of recorded frames, made here: square pictures side by side. */
export async function stripOf(frames, count = 8, side = 96) {
  const canvas = make("canvas", { width: count * side, height: side });
  const pen = canvas.getContext("2d", { alpha: false });
  for (let place = 0; place < count; place += 1) {
    const picture = await createImageBitmap(frames[Math.floor(((place + 0.5) * frames.length) / count)].blob);
    const part = Math.min(picture.width, picture.height);
    const [x, y] = [(picture.width - part) / 2, (picture.height - part) / 2];
    pen.drawImage(picture, x, y, part, part, place * side, 0, side, side);
    picture.close();
  }
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.85));
}
