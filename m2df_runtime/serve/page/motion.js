/* When something moves: the same rule as the server's, on a grid of mean grey values. */

const STILL = 4; // grey levels by which no cell differs where nothing moves
const APART = 0.3; // seconds between two frames that are compared: somebody slow has moved by then
const KEPT = 0.3; // seconds before the first movement and after the last, which are part of an action

function moves(before, after) {
  const change = after.map((value, cell) => value - before[cell]);
  const sorted = [...change].sort((a, b) => a - b);
  const exposure = sorted[sorted.length >> 1]; // what all cells have in common
  return change.some((value) => Math.abs(value - exposure) > STILL);
}

/**
 * First and last frame to keep of a recording whose ends are still.
 *
 * frames: objects with `time` in seconds and `grid`, the grey cells; at least one. Where nothing moves, all are kept.
 */
export function movingPart(frames) {
  const times = [];
  let earlier = frames[0];
  for (const frame of frames) {
    if (frame.time - earlier.time < APART) continue;
    if (moves(earlier.grid, frame.grid)) times.push([earlier.time, frame.time]);
    earlier = frame;
  }
  if (times.length === 0) return { first: 0, last: frames.length - 1, moved: false };
  const begin = times[0][0] - KEPT;
  const end = times[times.length - 1][1] + KEPT;
  const first = frames.findIndex((frame) => frame.time >= begin);
  const last = frames.findLastIndex((frame) => frame.time <= end);
  return { first, last, moved: true };
}
