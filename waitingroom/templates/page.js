(() => {
const $ = (id) => document.getElementById(id), text = JSON.parse($('text').textContent);
const main = document.querySelector('main'), {room, shop, retry} = main.dataset, lang = document.documentElement.lang;
const number = new Intl.NumberFormat(lang + '-u-nu-latn', {useGrouping: true});
const home = navigator.language.startsWith(lang) ? navigator.language : lang;
const clock = new Intl.DateTimeFormat(home + '-u-nu-latn', {timeStyle: 'medium'});
const plural = new Intl.PluralRules(lang);
const key = 'wr-' + room;
const channel = self.BroadcastChannel && new BroadcastChannel(key);
// Storage may be forbidden; then progress and the guard against reloading in a circle last as long as the page.
const memory = {start: 0, tries: 0, last: 0};
try { Object.assign(memory, JSON.parse(sessionStorage.getItem(key))); } catch { }
if (Date.now() - memory.last > 180000) memory.tries = 0;
const remember = (some) => {
  Object.assign(memory, some);
  try { sessionStorage.setItem(key, JSON.stringify(memory)); } catch { }
};
let state = main.dataset.state, timer, entering, fails = 0, heard, saidAt = Date.now();

const again = () => { remember({tries: memory.tries + 1, last: Date.now()}); location.reload(); };
const patience = () => memory.tries && Math.min(60, 2 ** memory.tries);
const enter = (seconds) => { entering ??= setTimeout(again, 1000 * Math.max(seconds, patience())); };
const count = (name, n, low) => text[name][plural.select(n)].replace('{n}', number.format(n)).replace('{low}', number.format(low));
const announce = (what, words, now) => {
  heard ??= what;
  if (!now && (what === heard || Date.now() - saidAt < 30000)) return;
  $('live').textContent = words;
  heard = what;
  saidAt = Date.now();
};
const range = (wait) => {
  if (!wait) return text.wait_unknown;
  const {low, high} = wait;
  if (high <= 60) return text.wait_soon;
  const [unit, size, step] = high > 10800 ? ['hours', 3600, 1] : ['minutes', 60, high > 1200 ? 5 : 1];
  const most = Math.ceil(high / size / step) * step;
  const least = Math.min(Math.floor(low / size / step) * step, most - step);
  return least ? count('wait_' + unit, most, least) : count('wait_upto_' + unit, most);
};
const place = (position) => {
  let n = +$('place').dataset.n;
  if (position) n = n ? Math.min(n, position) : position;
  if (!n) return;
  $('place').dataset.n = n;
  $('place').textContent = number.format(n);
  $('ahead').textContent = n > 1 ? count('ahead', n - 1) : text.next;
  if (n > memory.start) remember({start: n});
  const done = Math.floor(100 * (memory.start - n + 1) / (memory.start + 1));
  $('bar').hidden = false;
  $('progress').value = done;
  $('percent').textContent = new Intl.NumberFormat(lang + '-u-nu-latn', {style: 'percent'}).format(done / 100);
};
const turn = (to) => {
  state = main.dataset.state = to;
  for (const part of document.querySelectorAll('[data-for]')) part.hidden = !part.dataset.for.split(' ').includes(to);
  const title = main.querySelector(`[data-for~=${to}] h1`).textContent;
  const n = +$('place').dataset.n;
  document.title = (n && to !== 'your_turn' ? number.format(n) + ' · ' : '') + title + ' · ' + shop;
  return title;
};
const show = (doc) => {
  const to = doc.missed ? 'missed' : doc.slowed && doc.state === 'waiting' ? 'slowed' : doc.state, news = to !== state;
  fails = 0;
  schedule(doc.poll_after);
  if (!main.querySelector(`[data-for~=${to}] h1`)) return enter(0);
  place(doc.position);
  const title = turn(to);
  $('note').textContent = doc.message;
  if (to === 'your_turn' || to === 'inside') {
    const left = Math.floor(doc.until || 0);
    $('held').textContent = !left ? '' : left < 120 ? count('held_seconds', left) : count('held_minutes', Math.floor(left / 60));
    announce(title, title + '. ' + $('held').textContent, news);
    return enter(document.hidden ? Math.max(3, left - 20) : 3);
  }
  entering = clearTimeout(entering);
  if (to === 'full' || to === 'ended') { clearTimeout(timer); remember({start: 0}); }
  else if (memory.tries) remember({tries: 0});
  if (to === 'full') enter(doc.poll_after);
  const wait = $('wait').textContent = range(doc.wait);
  $('checked').dateTime = new Date(1000 * doc.updated).toISOString();
  $('checked').textContent = clock.format(1000 * doc.updated);
  announce(title + wait, `${title}. ${$('ahead').textContent}. ${wait}`, news);
};
const schedule = (seconds) => {
  clearTimeout(timer);
  timer = setTimeout(poll, 1000 * seconds * (1 + Math.random() / 10));
};
const poll = async () => {
  schedule(20);
  channel?.postMessage(0);
  try {
    const answer = await fetch(`/.waitingroom/status?room=${room}&shown=${$('place').dataset.n}`, {headers: {accept: 'application/json'}, cache: 'no-store', signal: AbortSignal.timeout?.(15000)});
    const doc = await answer.json();
    if (!doc.state) throw doc;
    show(doc);
    channel?.postMessage(doc);
  } catch {
    $('note').textContent = text.offline;
    announce(text.offline, text.offline, !fails++);
    schedule(Math.min(60, 2 ** fails));
  }
};
const back = () => { if (document.hidden) return; if (state === 'your_turn') { entering = clearTimeout(entering); enter(1); } poll(); };
for (const link of main.querySelectorAll('a')) {
  if (link.getAttribute('href')) link.hash = location.hash;
  else link.onclick = (event) => { event.preventDefault(); again(); };
}
if (state === 'ended') return;
if (!text.next || state === 'full') return enter(+retry);
if (channel) channel.onmessage = ({data: doc}) => doc ? show(doc) : schedule(20);
document.addEventListener('visibilitychange', back);
self.addEventListener('online', poll);
place();
poll();
})();
