(() => {
const $ = (id) => document.getElementById(id), text = JSON.parse($('text').textContent);
const {room, parts, bits} = document.querySelector('main').dataset, form = $('form'), lang = document.documentElement.lang;
const percent = new Intl.NumberFormat(lang + '-u-nu-latn', {style: 'percent'});
const key = 'wr-join-' + room, memory = {tries: 0, last: 0};
try { Object.assign(memory, JSON.parse(sessionStorage.getItem(key))); } catch { }
if (Date.now() - memory.last > 180000) memory.tries = 0;
try { sessionStorage.setItem(key, JSON.stringify({tries: memory.tries + 1, last: Date.now()})); } catch { }
self.addEventListener('pageshow', (event) => event.persisted && location.reload());
form.action += location.hash;
// A browser that keeps no cookie would come back here again and again.
$('cookies').hidden = navigator.cookieEnabled && memory.tries < 2;
if (!navigator.cookieEnabled) return;

// SHA-256 (FIPS 180-4) of one block of 40 bytes: seed, part, counter. Only the digest's first word is wanted.
const root = (n, power, most) => Math.floor((n ** power % 1) * most);
const primes = [];
for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
const K = Int32Array.from(primes, (p) => root(p, 1 / 3, 2 ** 32)), H = Int32Array.from(primes.slice(0, 8), (p) => root(p, 1 / 2, 2 ** 32));
const W = new Int32Array(64);
const first = (seed, part, counter) => {
  W.set(seed);
  W[8] = part; W[9] = counter; W[10] = 1 << 31; W[11] = W[12] = W[13] = W[14] = 0; W[15] = 320;
  let a = H[0], b = H[1], c = H[2], d = H[3], e = H[4], f = H[5], g = H[6], h = H[7];
  for (let i = 0; i < 64; i++) {
    if (i > 15) {
      const x = W[i - 15], y = W[i - 2];
      W[i] = W[i - 16] + W[i - 7] + ((x >>> 7 | x << 25) ^ (x >>> 18 | x << 14) ^ x >>> 3) + ((y >>> 17 | y << 15) ^ (y >>> 19 | y << 13) ^ y >>> 10);
    }
    const t = h + ((e >>> 6 | e << 26) ^ (e >>> 11 | e << 21) ^ (e >>> 25 | e << 7)) + (e & f ^ ~e & g) + K[i] + W[i] | 0;
    h = g; g = f; f = e; e = d + t | 0;
    const u = ((a >>> 2 | a << 30) ^ (a >>> 13 | a << 19) ^ (a >>> 22 | a << 10)) + (a & b ^ a & c ^ b & c);
    d = c; c = b; b = a; a = t + u | 0;
  }
  return a + H[0] | 0;
};

const [, proof] = form.action.match(/[.]([\w-]{43})(?=[&#]|$)/);
const bytes = atob(proof.replace(/-/g, '+').replace(/_/g, '/'));
const seed = Int32Array.from({length: 8}, (_, i) => [0, 1, 2, 3].reduce((word, n) => word << 8 | bytes.charCodeAt(4 * i + n), 0));
const found = [], began = Date.now(), turn = new MessageChannel();
let counter = 0, said = false;
const done = () => {
  $('live').textContent = text.done;
  const url = new URL(form.action);
  url.searchParams.set('proof', url.searchParams.get('proof') + '.' + found.join('-'));
  form.action = url;
  setTimeout(() => form.submit(), memory.tries > 1 ? Math.min(60, 2 ** memory.tries) * 1000 : 0);
};
turn.port1.onmessage = () => {
  for (const until = Date.now() + 30; Date.now() < until && found.length < +parts;) {
    for (let i = 0; i < 256; i++, counter++) {
      if (first(seed, found.length, counter) >>> 32 - bits) continue;
      found.push(counter);
      counter = 0;
      break;
    }
  }
  const share = found.length / parts;
  $('progress').value = share;
  $('percent').textContent = percent.format(share);
  if (share === 1) return done();
  if (!said && share >= .5 && Date.now() - began > 2000) { said = true; $('live').textContent = $('percent').textContent; }
  turn.port2.postMessage(0);
};
$('bar').hidden = false;
form.hidden = $('cookies').hidden;
turn.port2.postMessage(0);
})();
